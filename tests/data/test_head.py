import numpy as np
import pytest

from neuro.data.head import BRAIN, FIELD_OF_VIEW_MM, T1_LOOK, Scene

GRID = ((32, 32, 32), FIELD_OF_VIEW_MM / 32)


def scene(*, sex="M", age=50, body=0, view=0):
    return Scene(sex, age, np.random.default_rng(body), np.random.default_rng(view), *GRID)


def volume_of(head, painted):
    volume = np.zeros(GRID[0], np.float32)
    volume.flat[head.voxels] = painted
    return volume


def test_the_largest_head_stays_inside_the_field_of_view():
    for seed in range(20):
        head = scene(sex="M", body=seed, view=seed)
        volume = volume_of(head, head.paint(T1_LOOK))
        left, right, back, front, _, top = (  # the neck leaves through the floor
            np.take(volume, end, axis).max() for axis in range(3) for end in (0, -1)
        )
        assert max(left, right, back, front, top) < 0.5
        assert volume[16, 16, 16] > 0.1


def test_a_man_has_a_larger_brain_than_a_woman_with_the_same_draws():
    man, woman = (scene(sex=sex).paint(BRAIN).sum() for sex in "MF")
    assert man / woman == pytest.approx(1.15**3, rel=0.02)


def test_age_widens_ventricles_and_sulci_and_leaves_the_size():
    young, old = scene(age=20), scene(age=80)
    assert old.paint({"csf": 1.0}).sum() > 1.3 * young.paint({"csf": 1.0}).sum()
    assert (old.voxels == young.voxels).all()


def test_another_view_moves_the_head_and_leaves_the_body():
    one, other = scene(view=1), scene(view=2)
    assert (one.lesion_mm == other.lesion_mm).all()
    assert not np.array_equal(one.paint(T1_LOOK), other.paint(T1_LOOK))
    assert one.paint(BRAIN).sum() == pytest.approx(other.paint(BRAIN).sum(), rel=0.02)


def test_a_lesion_and_a_microlesion_are_at_opposite_ends():
    for seed in range(10):
        head = scene(body=seed)
        assert head.lesion_mm[1] * head.microlesion_mm[1] < 0


def test_a_blob_is_on_its_side_or_nowhere():
    head = scene()
    shares = {side: head.blob((30, 0, 20), side, (15, 15, 15)) for side in ("left", "right")}
    for side, share in shares.items():
        assert share.max() == 1
        assert ((head.points[0][share > 0] < 0) == (side == "left")).all()
    assert shares["left"].sum() == pytest.approx(shares["right"].sum(), rel=0.02)
    assert not head.blob((30, 0, 20), "none", (15, 15, 15)).any()


def test_a_rough_blob_follows_the_folds():
    head = scene()
    smooth, rough = (
        head.blob((30, 0, 20), "left", (15,) * 3, rough=rough) for rough in (False, True)
    )
    assert 0 < np.abs(smooth - rough).sum() < 0.5 * smooth.sum()


def test_paint_covers_what_is_below():
    head = scene()
    shares = [head.paint({tissue: 1.0}) for tissue in T1_LOOK]
    assert min(share.min() for share in shares) >= 0
    assert np.sum(shares, axis=0).max() <= 1 + 1e-5
    weighted = sum(look * share for look, share in zip(T1_LOOK.values(), shares, strict=True))
    np.testing.assert_allclose(head.paint(T1_LOOK), weighted, atol=1e-5)
