"""Recipes as the command line reads them."""

import tyro

from fastcat.config import TrainConfig
from fastcat.recipes import RECIPES
from fastcat.settings_file import yaml_arguments


def recipe_settings(name: str) -> TrainConfig:
    return tyro.cli(TrainConfig, args=yaml_arguments(RECIPES[name]))
