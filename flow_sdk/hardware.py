"""The hardware a task asks for, as a frozen value: `parse("a100:8")`, `str(...) == "8xa100"`.

Spellings, in any case: `a100`, `8xa100`, `a100:8`, `a100x8`, with a memory size as in `a100-40gb`; `cpu`;
a named size (`cpu-optimized`, `gpu.medium`); a provider's own id (`it_abc123`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from flow_sdk.errors import ValidationError

# Memory in GB that each GPU is sold with, by its maker's data sheet; the first is the standard one.
_MEMORY_GB: dict[str, tuple[int, ...]] = {
    "a2": (16,),
    "a10": (24,),
    "a10g": (24,),
    "a16": (16,),
    "a30": (24,),
    "a40": (48,),
    "a100": (80, 40),
    "a800": (80, 40),
    "a4000": (16,),
    "a5000": (24,),
    "a6000": (48,),
    "b100": (192,),
    "b200": (180, 192),
    "b300": (288,),
    "gb200": (186, 192),
    "gb300": (288,),
    "gh200": (96, 144),
    "h20": (96, 141),
    "h100": (80, 94, 96),
    "h200": (141,),
    "h800": (80,),
    "k80": (12,),
    "l4": (24,),
    "l40": (48,),
    "l40s": (48,),
    "mi100": (32,),
    "mi210": (64,),
    "mi250": (128,),
    "mi250x": (128,),
    "mi300a": (128,),
    "mi300x": (192,),
    "mi325x": (256,),
    "mi350x": (288,),
    "mi355x": (288,),
    "p4": (8,),
    "p40": (24,),
    "p100": (16, 12),
    "rtx2080ti": (11,),
    "rtx3080": (10, 12),
    "rtx3090": (24,),
    "rtx4080": (16,),
    "rtx4090": (24,),
    "rtx5080": (16,),
    "rtx5090": (32,),
    "rtx6000": (48, 24),
    "rtxpro6000": (96,),
    "t4": (16,),
    "v100": (16, 32),
}

GPUS = tuple(_MEMORY_GB)
SIZES = ("cpu", "cpu-optimized", "gpu.small", "gpu.medium", "gpu.large", "gpu.xlarge")

MAX_GPUS = 64
"""More in one machine is a slip: nobody builds one, and many machines are `num_instances`."""

_MODEL = r"([a-z]+[0-9]+[a-z]*)(?:-([0-9]{1,6})gb)?"
_COUNT = r"(0|[1-9][0-9]{0,8})"
_WORDS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "sixteen": 16}


class Hardware:
    """What a task needs of each of its nodes.

    Args:
        gpu: the GPU's name, or None where none is named.
        count: GPUs a node; 0 where none is named.
        memory_gb: memory of one GPU, the standard one where the text names none.
        size: a named size or a provider's id, else None.
        bare: the text names a GPU and no count: the smallest machine the provider has with that GPU will do.
    """

    __slots__ = ("bare", "count", "gpu", "memory_gb", "size")

    gpu: str | None
    count: int
    memory_gb: int | None
    size: str | None
    bare: bool

    def __init__(
        self,
        gpu: str | None = None,
        count: int = 0,
        memory_gb: int | None = None,
        size: str | None = None,
        bare: bool = False,
    ) -> None:
        put = object.__setattr__
        put(self, "gpu", gpu)
        put(self, "count", count)
        put(self, "memory_gb", memory_gb)
        put(self, "size", size)
        put(self, "bare", bare)

    @property
    def model(self) -> str | None:
        """The GPU with its memory where that is not the standard one: `a100`, `a100-40gb`."""
        if self.gpu is None or self.memory_gb in (None, _MEMORY_GB[self.gpu][0]):
            return self.gpu
        return f"{self.gpu}-{self.memory_gb}gb"

    def __str__(self) -> str:
        if self.size is not None:
            return self.size
        return str(self.model) if self.bare else f"{self.count}x{self.model}"

    def __repr__(self) -> str:
        return f"Hardware({str(self)!r})"

    def _key(self) -> tuple[object, ...]:
        return (self.gpu, self.count, self.memory_gb, self.size, self.bare)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Hardware) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Hardware is frozen: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"Hardware is frozen: {name} cannot be deleted")

    def __reduce__(self) -> tuple[object, ...]:
        return (Hardware, self._key())


def parse(text: str, what: str = "instance type") -> Hardware:
    """Read one spelling of hardware.

    Args:
        text: what the user wrote; case and outer whitespace do not matter.
        what: how an error names the thing.

    Raises:
        ValidationError: it is no spelling of any; the message names the nearest right one.
    """
    if not isinstance(text, str):
        raise ValidationError(
            f"Invalid {what} {_shown(text)}: it must be text such as a100 or 8xa100.",
            [f"Write {text}xa100 for that many A100s."] if type(text) is int and 0 < text <= MAX_GPUS else [],
        )
    # Ids keep their case: providers tell it_aB from it_Ab.
    if re.fullmatch(r"it_[A-Za-z0-9]+", text.strip()):
        return Hardware(size=text.strip())
    name = text.strip().lower()
    if name in SIZES:
        return Hardware(size=name)
    found = _read(name)
    if found is None:
        raise _unknown(text, what)
    return _checked(text, what, *found)


def request(instance_type: str | None, gpu: str | None) -> Hardware | None:
    """Merge a config's two ways to ask for hardware; None where neither is given.

    `gpu="a100"` means exactly one. A bare `instance_type` leaves the count open, so a `gpu` of the same model
    settles it.

    Raises:
        ValidationError: either is misspelt, `gpu` names no GPU, or the two ask for different things.
    """
    machine = None if instance_type is None else parse(instance_type)
    wanted = None if gpu is None else parse(gpu, "gpu")
    if wanted is None:
        return machine
    if wanted.gpu is None:
        raise ValidationError(
            f"Invalid gpu {_shown(gpu)}: it names no GPU.",
            [f"Use instance_type={str(wanted)!r} and leave gpu out.", "Name a GPU, as in gpu='a100'."],
        )
    exactly = Hardware(wanted.gpu, wanted.count, wanted.memory_gb)
    if machine is None or machine == exactly or (machine.bare and machine.model == exactly.model):
        return exactly
    raise ValidationError(
        f"instance_type {str(machine)!r} and gpu {str(wanted)!r} ask for different hardware.",
        [f"Leave gpu out to get {machine}.", f"Leave instance_type out to get {exactly}."],
    )


def _read(name: str) -> tuple[int | None, str, int | None] | None:
    """Count, GPU and memory of a well-formed spelling of a known GPU."""
    for pattern, count_at in (
        (_MODEL, None),
        (rf"{_COUNT}x{_MODEL}", 0),
        (rf"{_MODEL}:{_COUNT}", 2),
        (rf"{_MODEL}x{_COUNT}", 2),
    ):
        match = re.fullmatch(pattern, name)
        if match is None:
            continue
        groups = list(match.groups())
        count = None if count_at is None else int(groups.pop(count_at))
        if groups[0] in _MEMORY_GB:
            return count, groups[0], None if groups[1] is None else int(groups[1])
    return None


def _checked(text: str, what: str, count: int | None, gpu: str, memory_gb: int | None) -> Hardware:
    sold = _MEMORY_GB[gpu]
    if memory_gb is not None and memory_gb not in sold:
        nearest = min(sold, key=lambda gb: abs(gb - memory_gb))
        right = str(Hardware(gpu, 1 if count is None else count, nearest, bare=count is None))
        sizes = " or ".join(f"{gb} GB" for gb in sold)
        raise ValidationError(
            f"Invalid {what} {_shown(text)}: {gpu} comes with {sizes}, did you mean {right}?", [f"Use {right}."]
        )
    chosen = sold[0] if memory_gb is None else memory_gb
    if count is None:
        return Hardware(gpu, 1, chosen, bare=True)
    if count < 1:
        right = str(Hardware(gpu, 1, chosen))
        raise ValidationError(
            f"Invalid {what} {_shown(text)}: it asks for no GPU, did you mean {right}?",
            [f"Use {right} for one GPU.", "Use instance_type='cpu' for a machine without a GPU."],
        )
    if count > MAX_GPUS:
        right = str(Hardware(gpu, 8, chosen))
        raise ValidationError(
            f"Invalid {what} {_shown(text)}: no machine has {count} GPUs, did you mean {right}?",
            [f"Use {right} with num_instances={-(-count // 8)} to get {-(-count // 8) * 8} GPUs on several machines."],
        )
    return Hardware(gpu, count, chosen)


def _unknown(text: str, what: str) -> ValidationError:
    right = _nearest(text.strip().lower())
    known = f"Known GPUs: {', '.join(GPUS)}."
    if not text.strip():
        return ValidationError(f"The {what} is empty; name hardware such as a100, 8xa100 or cpu.", [known])
    if not right:
        message = f"Invalid {what} {_shown(text)}: name hardware such as a100, 8xa100 or cpu."
        return ValidationError(message, [known, f"Known sizes: {', '.join(SIZES)}."])
    return ValidationError(
        f"Invalid {what} {_shown(text)}: did you mean {_either(right)}?",
        [
            *(f"Use {one}." for one in right),
            "GPUs are written a100, 8xa100, a100:8 or a100x8; a memory size, a100-40gb.",
        ],
    )


def _nearest(name: str) -> list[str]:
    """Right spellings near a wrong one, nearest first: GPU and count are looked for separately."""
    from difflib import get_close_matches

    if len(name) > 100:
        return []
    name = re.sub(r"nvidia|geforce|tesla|instinct|sxm[0-9]?|pcie|nvl|gpus?(?![.a-z])", " ", name)
    name = re.sub(r"([0-9]+)\s*gb\b", " ", memory := name)
    name = re.sub(r"(?<![a-z0-9])([0-9]+)\s*[x*×]", r"\1 ", name)
    name = re.sub(r"[x*×]\s*([0-9]+)$", r" \1", name)
    name = re.sub(r"\b(rtx|mi|gh|gb)[ -]+([0-9])", r"\1\2", name)
    words = re.findall(r"[a-z0-9.]+", name)
    counts = [_WORDS[w] if w in _WORDS else int(w) for w in words if w in _WORDS or (w.isdecimal() and len(w) <= 2)]
    names = [w for w in words if w not in _WORDS and not (w.isdecimal() and len(w) <= 2)]
    exact = [w for w in names if w in _MEMORY_GB]
    gpus = exact[:1] or [g for w in names[:3] for g in get_close_matches(w, GPUS, n=3, cutoff=0.66)]
    if not gpus and not names and counts:
        return [str(Hardware("a100", min(max(counts[0], 1), MAX_GPUS), 80))]
    if not gpus:
        return get_close_matches(name.strip().replace(" ", "-"), SIZES, n=1, cutoff=0.6)
    count = next((n for n in counts if 1 <= n <= MAX_GPUS), None)
    sold = re.search(r"([0-9]+)\s*gb\b", memory)
    spellings = []
    for gpu in dict.fromkeys(gpus[:4]):
        gb = int(sold[1]) if sold and int(sold[1]) in _MEMORY_GB[gpu] else _MEMORY_GB[gpu][0]
        spellings.append(str(Hardware(gpu, count or 1, gb, bare=count is None)))
    return spellings


def _either(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
