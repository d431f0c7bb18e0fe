"""``system=mil`` at the size of a test, as the command builds it, and small heads on disk."""

from __future__ import annotations

import copy
from functools import cache

import lightning as L
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate

from neuro import command
from neuro.data.phantom_files import write_phantoms

GROUPS = ("system", "encoder", "data", "tuning")
# Heads of 6 x 6 x 6 tokens.
SMALL = (
    "system=mil",
    "encoder=custom",
    "data=bids",
    "data.modalities=[T1]",
    "recipe@data.recipes.T1=cube_t1",
    "data.recipes.T1.shape=[24,24,24]",
    "data.recipes.T1.spacing_mm=8.0",
    "data.recipes.T1.patch=[4,4,4]",
    "data.patch_voxels=64",
    "data.max_studies=8",
    "data.label=has_lesion",
    "system.encoder.dim=48",
    "system.encoder.num_layers=2",
    "system.encoder.num_heads=4",
    "system.num_resamples=20",
    "optim.lr=1e-3",
    "trainer.accelerator=cpu",
)


def write_heads(root, num_subjects=40):
    """Write T1 images as BIDS: of forty, 32 to train on, four to validate and four to test on."""
    grid = {"t1_shape": (24, 24, 24), "t1_spacing_mm": 8.0}
    write_phantoms(root, num_subjects=num_subjects, seed=1, modalities=["T1"], **grid)
    return root


@cache
def _composed(groups):
    """Return the config of some choices of groups, once: Hydra takes half a second."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(command.CONF), version_base="1.3"):
        return compose("train", overrides=[*groups])


def _chooses(override):
    key = override.partition("=")[0]
    return key.startswith("~") or "@" in key or key in GROUPS


def config(heads, root, *overrides, drop=()):
    """Return the resolved config of a run below ``root`` on the heads, without some of SMALL."""
    given = [f"data.root={heads}", f"paths.root={root}", f"paths.run_dir={root}/run"]
    given = [*(one for one in SMALL if one not in drop), *given, *overrides]
    cfg = copy.deepcopy(_composed(tuple(one for one in given if _chooses(one))))
    cfg.merge_with_dotlist([one for one in given if not _chooses(one)])
    command.resolve(cfg)
    return cfg


def build(heads, root, *overrides):
    """Return the data module, whose cache is built, and the system, which is prepared.

    The same arguments give the same weights.
    """
    cfg = config(heads, root, *overrides)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule = instantiate(cfg.data.datamodule, _convert_="all")
    datamodule.prepare_data()
    system = instantiate(cfg.system, _convert_="all")
    system.prepare(datamodule)
    return datamodule, system
