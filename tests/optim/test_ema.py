"""A teacher follows its student, by exactly what the formula says."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from neuro.errors import InputError
from neuro.models.vit import VisionTransformer
from neuro.optim.ema import ema_update


def pair():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    teacher = copy.deepcopy(student).requires_grad_(False)
    with torch.no_grad():
        for one in [*student.parameters(), student[1].running_mean]:
            one.add_(torch.randn_like(one))
    student[1].num_batches_tracked += 7
    return teacher, student


def values(module):
    return {name: one.detach().clone() for name, one in module.state_dict().items()}


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.994, 1.0])
def test_it_is_the_formula_for_parameters_and_buffers(momentum):
    teacher, student = pair()
    before, followed = values(teacher), values(student)
    ema_update(teacher, student, momentum)
    after = values(teacher)
    assert after.pop("1.num_batches_tracked") == 7  # a count is copied
    for name, one in after.items():
        want = momentum * before[name] + (1 - momentum) * followed[name]
        torch.testing.assert_close(one, want)
    for name, one in values(student).items():
        assert torch.equal(one, followed[name])


def test_the_ends_are_exact():
    teacher, student = pair()
    before = values(teacher)
    ema_update(teacher, student, 1.0)
    after = values(teacher)
    assert all(torch.equal(after[name], before[name]) for name in after if "tracked" not in name)
    ema_update(teacher, student, 0.0)
    assert all(torch.equal(one, values(student)[name]) for name, one in values(teacher).items())


def test_after_the_last_step_of_the_optimizer_the_teacher_has_seen_it():  # S22
    teacher, student = pair()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    folded = values(teacher)
    for _ in range(3):
        optimizer.zero_grad()
        student(torch.randn(6, 5)).square().sum().backward()
        optimizer.step()
        ema_update(teacher, student, 0.9)
        followed = values(student)
        folded = {name: 0.9 * one + 0.1 * followed[name] for name, one in folded.items()}
    torch.testing.assert_close(values(teacher)["0.weight"], folded["0.weight"])
    assert not torch.equal(values(teacher)["0.weight"], values(student)["0.weight"])


@pytest.mark.parametrize(
    ("momentum", "left", "left_in_half"), [(0.998, 0.018, 0.5), (0.9999, 0.819, 0.99)]
)
def test_it_does_not_stall(momentum, left, left_in_half):  # S23
    """The gap that 2000 updates leave of 1, here and in bfloat16."""
    teacher, student = nn.Linear(8, 8), nn.Linear(8, 8)
    nn.init.ones_(teacher.weight)
    nn.init.constant_(student.weight, 2.0)
    half = teacher.weight.detach().bfloat16()
    for _ in range(2000):
        ema_update(teacher, student, momentum)
        half.lerp_(student.weight.detach().bfloat16(), 1 - momentum)
    assert (2 - teacher.weight).mean().item() == pytest.approx(left, abs=1e-3)
    assert (2 - half.float()).mean().item() > left_in_half


def test_a_teacher_in_half_precision_is_an_error():  # S23
    with pytest.raises(InputError, match=r"float32 weights; got torch.bfloat16.*bf16-mixed"):
        ema_update(nn.Linear(3, 3).bfloat16(), nn.Linear(3, 3).bfloat16(), 0.9)


def test_a_student_in_half_precision_is_followed_in_float32():
    teacher, student = nn.Linear(3, 3), nn.Linear(3, 3).bfloat16()
    before = values(teacher)["weight"]
    ema_update(teacher, student, 0.999)
    torch.testing.assert_close(teacher.weight, before.lerp(student.weight.float(), 0.001))


def test_the_whole_encoder_is_float32_and_moves():  # S23
    student = VisionTransformer(36, 2, 2, patch_voxels=4)
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    assert {one.dtype for one in teacher.parameters()} == {torch.float32}
    before = values(teacher)
    with torch.no_grad():
        for one in student.parameters():
            one.add_(1e-3)
    ema_update(teacher, student, 0.99)
    assert all((one - before[name]).abs().min() > 0 for name, one in values(teacher).items())
    assert not any(one.requires_grad for one in teacher.parameters())
