"""Recipes as the command line reads them."""

import tyro

from fastcat.config.recipes import RECIPES
from fastcat.config.train import TrainConfig
from fastcat.config.yaml_file import yaml_arguments


def recipe_settings(name: str) -> TrainConfig:
    return tyro.cli(TrainConfig, args=yaml_arguments(RECIPES[name]))
