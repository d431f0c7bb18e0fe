"""Memory that is not enough: what was being held, and which setting asks for less."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from omegaconf import DictConfig, OmegaConf

from neuro.errors import InputError, legible

# Of the CPU, which torch tells with no class of its own.
SIGNS = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")
BUDGETS = ("data.max_tokens", "data.max_studies")
SPARING = ("system.checkpoint_activations", "system.encoder.checkpoint_activations")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory, of this machine or of a device, is not enough."""
    # By its name: torch is not imported before it is needed.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(sign in str(error) for sign in SIGNS)
    )


def explained(chain: Sequence[BaseException], cfg: DictConfig | None) -> str | None:
    """Return which batch needed too much memory and what to lower; None for other errors.

    Args:
        chain: What left the command, and what it came from. Notes on one of them say which batch
            it was, see ``StepGuard``.
        cfg: The command's config.
    """
    found = next((one for one in chain if is_out_of_memory(one)), None)
    if found is None or any(isinstance(one, InputError) for one in chain):
        return None
    notes = [note for one in chain for note in getattr(one, "__notes__", ())]
    where = f" at {notes[-1]}" if notes else ""
    wanted = " ".join(str(found).partition("\n")[0].split())[:200].rstrip(".")
    cures = " ".join(_cures(cfg))
    return legible(f"out of memory{where} ({wanted or type(found).__name__}). {cures}")


def _cures(cfg: DictConfig | None) -> Iterator[str]:
    if cfg is None:
        cfg = OmegaConf.create()
    given = {key: OmegaConf.select(cfg, key) for key in BUDGETS}
    budgets = [f"{key} (it is {value})" for key, value in given.items() if value is not None]
    sparing = [key for key in SPARING if OmegaConf.select(cfg, key) is False]
    if budgets:
        yield f"Lower {' or '.join(budgets)}."
    if sparing:
        yield f"{sparing[0]}=true needs less, and a third more time."
    if not budgets:
        yield "Use a machine with more memory, or run fewer processes on this one."
