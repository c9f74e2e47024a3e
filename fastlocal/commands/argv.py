"""Words of a command line before the parser: the reference's spellings, and unknown flags."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import tyro

from ..common.errors import UsageError, nearest

SEVERAL_VALUES = ("--mean", "--std")
UNITS = {"B": 1} | {
    letter + suffix: base**power
    for power, letter in enumerate("KMGT", 1)
    for suffix, base in (("iB", 1024), ("B", 1000))
}


def registry() -> tyro.constructors.ConstructorRegistry:
    """Return the parser's rule for booleans: 1/0/true/false as in the reference; without a value, 1."""
    rules = tyro.constructors.ConstructorRegistry()

    @rules.primitive_rule
    def boolean(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[bool] | None:
        if info.type is not bool:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs="*",
            metavar="{0,1}",
            instance_from_str=_boolean,
            is_instance=lambda value: isinstance(value, bool),
            str_from_instance=lambda value: [str(int(value))],
        )

    return rules


def _boolean(words: list[str]) -> bool:
    meanings = {"1": True, "true": True, "1.0": True, "0": False, "false": False, "0.0": False}
    if not words:
        return True
    if len(words) > 1 or words[0].lower() not in meanings:
        raise ValueError(f"{' '.join(words)!r} is not 1, 0, true or false")
    return meanings[words[0].lower()]


def normalise(argv: Sequence[str]) -> list[str]:
    """Rewrite the words of a command line for the parser.

    `--flag=value` becomes two words, `_` in flags becomes `-`, commas in --mean and --std become spaces, a size of
    --memory-limit becomes GiB, and the reference's `--wandb None` becomes online.
    """
    words: list[str] = []
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            words += [name.replace("_", "-"), value] if equals else [name.replace("_", "-")]
        else:
            words.append(word)
    out: list[str] = []
    flag = ""
    for word in words:
        if is_flag(word):
            flag = word
            out.append(word)
        elif flag == "--memory-limit":
            out.append(_gib(word))
        elif flag == "--wandb" and word == "None":
            out.append("online")
        elif flag in SEVERAL_VALUES:
            out += word.replace(",", " ").split()
        else:
            out.append(word)
    return out


def _gib(word: str) -> str:
    """Convert a size with an optional unit to GiB; raises UsageError for other words."""
    number = word.rstrip("BiKMGT")
    unit = word.removeprefix(number)
    if word == "None" or (not unit and is_number(number)):
        return word
    if unit not in UNITS or not is_number(number):
        raise UsageError(f"--memory-limit {word}: give GiB as a number, or a size in one of {', '.join(UNITS)}: 500MiB")
    return repr(float(number) * UNITS[unit] / 2**30)


def is_number(word: str) -> bool:
    """Return True if a word is a number, including NaN and infinity."""
    try:
        float(word)
    except ValueError:
        return False
    return True


def is_flag(word: str) -> bool:
    """Return True if a word is a flag, and not a value such as -1, -1e-3 or -inf."""
    return word.startswith("-") and word not in ("-", "--") and not is_number(word)


def refuse_unknown(words: Iterable[str], names: Iterable[str], command: str) -> None:
    """Raise UsageError for the first flag among `words` that is not one of the fields `names` of `command`."""
    known = ["--" + name.replace("_", "-") for name in names]
    for word in words:
        if is_flag(word) and word not in (*known, "-h", "--help", "--help-all"):
            raise UsageError(f"unknown flag {word}{nearest(word, known)}; `{command} --help` lists the flags")


def refuse_half_precision(words: Sequence[str]) -> None:
    """Raise UsageError for --precision fp16, which other programs offer."""
    if value_of("--precision", words) in ("fp16", "float16", "half"):
        raise UsageError(
            "--precision fp16: gradients below 6e-8 would vanish without a loss scale per client; use bf16, whose "
            "exponents are those of fp32"
        )


def value_of(flag: str, words: Sequence[str]) -> str | None:
    """Return the word after the last `flag`; None without one, or if it is `None`."""
    found = [after for word, after in zip(words, words[1:], strict=False) if word == flag]
    return found[-1] if found and found[-1] != "None" and not is_flag(found[-1]) else None
