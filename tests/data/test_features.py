"""Features come back as they were written, and only for the encoder and images they are of."""

from __future__ import annotations

import pytest
import torch

from neuro.data.batch import StudyBatch, VolumeTokens
from neuro.data.features import FeatureFolder, weights_stamp
from neuro.data.whole_file import NotWritable

IMAGES = {"001": "images of 001", "a/b": "images of a/b"}


@pytest.fixture
def batch():
    """Two studies, of two volumes and of one."""
    generator = torch.Generator().manual_seed(0)
    return StudyBatch(
        volumes=VolumeTokens(
            tokens=torch.zeros(9, 8, dtype=torch.uint8),
            coords=torch.randint(0, 300, (9, 3), generator=generator),
            bounds=torch.tensor([0, 2, 5, 9], dtype=torch.int32),
            sizes=torch.tensor([[300, 300, 300], [301, 300, 300], [302, 300, 300]]),
            kinds=("mri", "brain", "bone"),
        ),
        study_bounds=torch.tensor([0, 2, 3], dtype=torch.int32),
        labels=torch.zeros(2, 1),
        study_ids=("001", "a/b"),
        series_names=("t1", "head.brain", "head.bone"),
    )


def test_each_volume_comes_back_by_itself(tmp_path, batch):
    folder = FeatureFolder(tmp_path, "encoder")
    features = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    folder.write(batch, features, IMAGES)
    places = [("001", 0, 0, 2), ("001", 1, 2, 5), ("a/b", 0, 5, 9)]
    for number, (study, index, start, stop) in enumerate(places):
        own, coords, size, name = folder.read(study, index)
        torch.testing.assert_close(own.float(), features[start:stop], rtol=1e-3, atol=1e-6)
        assert torch.equal(coords, batch.volumes.coords[start:stop].int())
        assert size == tuple(batch.volumes.sizes[number].tolist())
        assert name == batch.series_names[number]


def test_features_are_of_these_images_and_this_encoder_alone(tmp_path, batch):
    folder = FeatureFolder(tmp_path, "encoder")
    assert not folder.holds("001", IMAGES["001"])
    folder.write(batch, torch.zeros(9, 6), IMAGES)
    assert all(folder.holds(*one) for one in IMAGES.items())
    assert not folder.holds("001", "other images")
    assert not folder.holds("1", IMAGES["001"])
    assert not FeatureFolder(tmp_path, "another encoder").holds("001", IMAGES["001"])
    assert FeatureFolder(tmp_path, "encoder").holds("001", IMAGES["001"])


def test_a_damaged_file_is_no_feature_and_a_broken_write_leaves_none(tmp_path, batch, monkeypatch):
    folder = FeatureFolder(tmp_path, "encoder")
    folder.write(batch, torch.zeros(9, 6), IMAGES)
    for path in folder.folder.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:50])
    assert not any(folder.holds(*one) for one in IMAGES.items())

    def full(*_):
        raise OSError("no space")

    monkeypatch.setattr("neuro.data.features.save_file", full)
    with pytest.raises(NotWritable, match=r"no space.*set paths\.cache_dir"):
        folder.write(batch, torch.zeros(9, 6), IMAGES)
    left = [path for path in folder.folder.iterdir() if path.name != ".locks"]
    assert len(left) == 2  # and nothing half done


def test_a_stamp_is_of_every_bit_of_every_tensor():
    tensors = [("a", torch.zeros(3, 2)), ("b", torch.tensor(1)), ("c", torch.zeros(2).bfloat16())]
    stamp = weights_stamp(tensors)
    assert stamp == weights_stamp([(name, one.clone()) for name, one in tensors])
    for place in range(3):
        name, one = tensors[place]
        changed = one.clone()
        changed.view(-1)[0] += 1
        other = [*tensors]
        other[place] = (name, changed)
        assert weights_stamp(other) != stamp
    assert weights_stamp([("x", tensors[0][1]), *tensors[1:]]) != stamp
    transposed = [("a", torch.zeros(3, 2).T), *tensors[1:]]
    assert weights_stamp(transposed) == weights_stamp([("a", torch.zeros(2, 3)), *tensors[1:]])
