"""report.html of a run: its curves and tables in one static file without scripts or network."""

import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fastcat.errors import InputError
from fastcat.files import write_text
from fastcat.report.figures import Curve, svg, table
from fastcat.report.records import (
    EpochRecord,
    EvaluationRecord,
    PeerEvaluation,
    SeedsEvaluation,
)
from fastcat.report.seeds import is_over_seeds, read_record, read_spreads, rows, runs_of
from fastcat.report.signs import new_signs

# told apart by colour-blind readers too (Okabe and Ito)
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE = """
:root { color-scheme: light dark; --line: #8886; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .8rem .15rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
div { overflow-x: auto; } svg { max-width: 100%; } svg text { fill: currentColor; font-size: 12px; }
"""


def renew_report(run: Path, say: Callable[[str], object]) -> None:
    """Write report.html, or say why not: nothing ends because its picture cannot be drawn."""
    try:
        write_report(run)
    except InputError as error:
        say(f"no report: {error}")


def write_report(run: Path) -> None:
    """Write report.html from metrics.jsonl, config.yaml and eval/*.json, as far as they are there.

    The page of several seeds links to the pages of their runs.
    Raises InputError when a record cannot be read or the page cannot be written.
    """
    try:
        content = _over_seeds(run) if is_over_seeds(run) else _of_one_run(run)
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise InputError(f"a record of {run} cannot be read: {error!r}") from error
    parts = [
        f"<h1>{escape(run.resolve().name)}</h1>",
        *content,
        "<h2>Settings</h2>",
        f"<pre>{escape(_read(run / 'config.yaml'))}</pre>",
    ]
    title = f"<title>{escape(run.resolve().name)}</title>"
    head = f'<!doctype html>\n<html lang="en"><meta charset="utf-8">{title}<style>{STYLE}</style>'
    write_text(run / "report.html", "\n".join([head, *parts, "</html>\n"]))


def _of_one_run(run: Path) -> list[str]:
    lines = _read(run / "metrics.jsonl").splitlines()
    epochs = [EpochRecord.read(json.loads(line)) for line in lines]
    evaluations = [
        _evaluation(name, EvaluationRecord.read(values)) for name, values in _evaluations(run)
    ]
    return [
        *_curves(epochs),
        *_signs(epochs),
        *evaluations,
        "<h2>Epochs</h2>",
        _epoch_table(epochs),
    ]


def _over_seeds(folder: Path) -> list[str]:
    record = read_record(folder)
    best, last = (read_spreads(record, which) for which in ("best", "last"))
    title = f"percent of {record['judged_on']} images"
    tables = [list(rows(title, ("best", best), ("last", last)))]
    for name, values in _evaluations(folder):
        evaluation = SeedsEvaluation.read(values)
        title = (
            f"{name}: percent of {evaluation.n} {evaluation.split} images, "
            f"{threats_in_words(evaluation)}"
        )
        tables.append(list(rows(title, ("", read_spreads(values, "spread")))))
    links = [
        f'<li><a href="{run.name}/report.html">seed {seed}</a></li>'
        for seed, run in runs_of(folder).items()
    ]
    return [
        "<h2>Mean and standard deviation over seeds</h2>",
        *(table(heads, body) for heads, *body in tables),
        "<h2>Runs</h2>",
        f"<ul>{''.join(links)}</ul>",
    ]


def _evaluations(run: Path) -> list[tuple[str, dict[str, Any]]]:
    """Name and content of each finished eval/*.json."""
    texts = [(path.name, _read(path)) for path in sorted((run / "eval").glob("*.json"))]
    return [(name, json.loads(text)) for name, text in texts if text]


def headline(accuracy: dict[str, float]) -> dict[str, float]:
    """Of accuracies by attack those to show: all, but where several are summed up as "worst"
    only that beside "clean".
    """
    shown = ("clean", "worst") if "worst" in accuracy else tuple(accuracy)
    return {attack: accuracy[attack] for attack in shown}


def _read(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def _curves(epochs: Sequence[EpochRecord]) -> list[str]:
    accuracy: list[Curve] = []
    loss: list[Curve] = []
    names = list(epochs[0].peers) if epochs else []
    split = epochs[0].judged_on if names else None
    for k, name in enumerate(names):
        peers = [epoch.peers[name] for epoch in epochs]
        color = COLORS[k % len(COLORS)]
        loss.append((name, color, False, [peer.train["loss"] for peer in peers]))
        for attack in headline(peers[0].accuracy):
            values = [100 * peer.accuracy[attack] for peer in peers]
            accuracy.append((f"{name} {attack}", color, attack != "clean", values))
    parts = []
    if accuracy:
        chosen = " (chooses the best weights)" if epochs[0].select_on == split else ""
        parts += [f"<h2>Accuracy in percent on {split} images{chosen}</h2>", svg(accuracy, 0, 100)]
    if loss:
        finite = [value for *_, values in loss for value in values]
        parts += ["<h2>Training loss</h2>", svg(loss, 0, 1.05 * max(*finite, 1e-6))]
    return parts


def _signs(epochs: Sequence[EpochRecord]) -> list[str]:
    """What the watch named, and what was done about it."""
    lines = [
        f"epochs {back['to'] + 1} to {back['from']} were begun again: {back['reason']}"
        for back in (epochs[-1].rollbacks if epochs else ())
    ]
    for former, epoch in zip([None, *epochs], epochs, strict=False):
        lines += new_signs(epoch, former)
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return [f"<h2>Watch</h2><ul>{items}</ul>"] if lines else []


def _evaluation(name: str, record: EvaluationRecord) -> str:
    """One eval/*.json: attacks as columns, peers as rows, with 95 % intervals."""
    first = next(iter(record.peers.values()))
    attacks = list(first.attacks)
    rows = []
    for name_of_peer, peer in record.peers.items():
        cells = [f"{name_of_peer}, {peer.info['selected']}"]
        for attack in attacks:
            result = peer.attacks[attack]
            low, high = (100 * end for end in result.ci95)
            cells.append(f"{100 * result.accuracy:.2f} ({low:.1f} .. {high:.1f})")
        rows.append(cells)
    text = (
        f"{name}: percent of {first.n} {record.split} images, "
        f"{threats_in_words(first)}, 95 % interval"
    )
    remarks = [line for each in record.peers.items() for line in doubts(*each)]
    silent = "".join(f"<p>{escape(remark)}</p>" for remark in remarks)
    return f"<h2>{escape(text)}</h2>" + table(["", *attacks], rows) + silent


def threats_in_words(record: PeerEvaluation | SeedsEvaluation) -> str:
    """The threat models of an evaluation."""
    each = [f"{one['norm']} eps {one['eps']} step {one['step_size']}" for one in record.threats]
    return f"{'; '.join(each)}; restarts {record.restarts}"


def doubts(peer: str, record: PeerEvaluation) -> list[str]:
    """Lines about what a peer's accuracies do not tell: logits that are no numbers, and images that
    attacks could not move.
    """
    lines = []
    found = {name: result.unanswered for name, result in record.attacks.items()}
    counts = ", ".join(f"{count} under {name}" for name, count in found.items() if count)
    if counts:
        lines.append(
            f"{peer}: NaN or infinite logits are no answer and count as wrong; "
            f"of {record.n} images they are {counts}"
        )
    if record.without_gradient:
        lines.append(
            f"{peer}: gradients have NaN for {record.without_gradient} of {record.n} images, "
            "where attacks cannot follow them: little is known of their robustness"
        )
    return lines


def _epoch_table(epochs: Sequence[EpochRecord]) -> str:
    heads = ["epoch", "learning rate"]
    rows = []
    for epoch in epochs:
        heads, row = ["epoch", "learning rate"], [str(epoch.epoch), f"{epoch.lr:.5f}"]
        for name, peer in epoch.peers.items():
            for attack, value in peer.accuracy.items():
                heads.append(f"{name} {epoch.judged_on} {attack}")
                row.append(f"{100 * value:.2f}")
            for term, value in peer.train.items():
                heads.append(f"{name} train {term}")
                row.append(f"{value:.4f}")
        heads += ["images/s", "seconds"]
        rows.append([*row, f"{epoch.images_per_second:.0f}", f"{epoch.seconds:.1f}"])
    return table(heads, rows)
