"""`fastlocal train --help`: the common flags. `--help-all` prints every flag."""

from __future__ import annotations

import shutil
import textwrap

from ..config.field_docs import field_docs
from ..config.schema import AREAS, RunConfig

COMMON = {
    "what is trained": ("dataset", "data_pth", "model"),
    "clients and steps": ("clients", "batch_size", "step1", "epochs", "rounds"),
    "clients with own samples": ("partition", "population", "algorithm", "server_optimizer"),
    "rates": ("client_lr", "start_lr", "momentum", "wd"),
    "machine": ("device", "precision", "executor", "seed"),
    "files": ("log_pth", "eval_freq1", "overwrite", "continue", "config", "dry_run"),
}
"""Common flags by subject."""
WIDTH, INDENT = 100, 20


def short_help(command: str, config: RunConfig, own: dict[str, str]) -> str:
    """Return the short help text.

    Args:
        command: Name of the command, as in "fastlocal train".
        config: Settings whose values are shown as defaults.
        own: {flag: text} of the command's flags that are not settings of a run.
    """
    texts = {name: text for kind in AREAS.values() for name, text in field_docs(kind).items()} | own
    lines = [
        f"usage: {command} [RECIPE] [--flag value ...]",
        "",
        "A recipe comes first; `fastlocal recipes` lists them. Flags change the recipe's values.",
    ]
    for subject, names in COMMON.items():
        lines += ["", f"{subject}:"]
        for name in names:
            default = "" if name in own else f" [{_format(config.value(name))}]"
            lines += _entry("--" + name.replace("_", "-"), f"{texts[name].partition('. ')[0]}{default}")
    return "\n".join([*lines, "", f"`{command} --help-all` explains all flags."])


def _entry(flag: str, text: str) -> list[str]:
    width = max(50, min(WIDTH, shutil.get_terminal_size().columns))
    return textwrap.wrap(
        text, width, initial_indent=f"  {flag} ".ljust(INDENT), subsequent_indent=" " * INDENT, break_on_hyphens=False
    )


def _format(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
