"""``system=jepa`` at the size of a test, as the command would build it."""

from __future__ import annotations

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate

from neuro import command

# Forty heads of 6 x 6 x 6 tokens: 32 to train on, four to validate and four to test on.
SMALL = (
    "system=jepa",
    "encoder=custom",
    "recipe@data.recipes.T1=cube_t1",
    "data.questions=[]",
    "data.modalities=[T1]",
    "data.num_subjects=40",
    "data.patch_voxels=64",
    "data.recipes.T1.shape=[24,24,24]",
    "data.recipes.T1.spacing_mm=8.0",
    "data.recipes.T1.patch=[4,4,4]",
    "data.max_studies=8",
    "system.encoder.dim=48",
    "system.encoder.num_layers=2",
    "system.predictor.dim=48",
    "system.predictor.num_layers=1",
    "system.predictor.num_heads=4",
    "optim.lr=1e-3",
    "trainer.accelerator=cpu",
)


def config(root, *overrides):
    """Return the resolved config of a run below ``root``."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(command.CONF), version_base="1.3"):
        given = [*SMALL, f"paths.root={root}", f"paths.run_dir={root}/run", *overrides]
        cfg = compose("train", overrides=given)
    command.resolve(cfg)
    return cfg


def build(root, *overrides):
    """Return the data module and the system; the same arguments give the same weights."""
    import lightning as L

    cfg = config(root, *overrides)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    return (
        instantiate(cfg.data.datamodule, _convert_="all"),
        instantiate(cfg.system, _convert_="all"),
    )
