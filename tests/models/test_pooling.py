"""What a pool finds in a study follows from the study's tokens alone."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from torch.nn import functional as F

from neuro.errors import InputError
from neuro.models.pooling import AdditivePool, AttentionPool, MeanPool

DIM, OUTPUTS = 12, 3


def attention(**given):
    return AttentionPool(**{"dim": DIM, "hidden_dim": 8, "num_outputs": OUTPUTS} | given)


def additive(**given):
    return AdditivePool(**{"dim": DIM, "hidden_dim": 8, "num_outputs": OUTPUTS} | given)


def mean(**given):
    given.pop("dropout", None)
    return MeanPool(**{"dim": DIM, "num_outputs": OUTPUTS} | given)


POOLS = {
    "attention": attention,
    "attention, perceptron": lambda **given: attention(head_dims=[7, 6], **given),
    "attention, shared": lambda **given: attention(
        head_dims=[7], attention_per_output=False, **given
    ),
    "additive": additive,
    "additive, perceptron": lambda **given: additive(head_dims=[7], normalize=True, **given),
    "additive, shared": lambda **given: additive(attention_per_output=False, **given),
    "mean": mean,
    "mean, perceptron": lambda **given: mean(head_dims=[7], normalize=True, **given),
}


def bounds_of(lengths):
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def tokens_of(num, seed=0):
    return torch.randn(num, DIM, generator=torch.Generator().manual_seed(seed))


def stirred(pool, seed=0):
    """A pool whose parameters are far from where they start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return pool


@pytest.fixture(params=POOLS)
def pool(request):
    return stirred(POOLS[request.param]())


LENGTHS = [5, 1, 40, 17]


def test_a_study_is_judged_as_if_it_were_alone_whatever_the_order_of_its_tokens(pool):
    tokens, bounds = tokens_of(63), bounds_of(LENGTHS)
    together = pool(tokens, bounds)
    for number, (start, stop) in enumerate(itertools.pairwise(bounds.tolist())):
        own = tokens[start:stop]
        own = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(1))]
        alone = pool(own, bounds_of([len(own)]))
        torch.testing.assert_close(together[[number]], alone, atol=1e-5, rtol=1e-5)


def test_a_token_of_another_study_has_no_gradient_at_all(pool):
    tokens = tokens_of(63).requires_grad_()
    (grad,) = torch.autograd.grad(pool(tokens, bounds_of(LENGTHS))[2].square().sum(), tokens)
    assert torch.equal(grad[:6], torch.zeros(6, DIM))
    assert torch.equal(grad[46:], torch.zeros(17, DIM))
    assert (grad[6:46].abs().amax(dim=1) > 0).all()


def plainly(pool, tokens):
    """The formulas of a study, one output after the other."""
    if pool.normalize:
        tokens = F.layer_norm(tokens, (DIM,), eps=1e-6)
    logits = []
    for output in range(OUTPUTS):
        last = pool.head.last.weight[output]
        if isinstance(pool, MeanPool):
            raw = pool.head.hidden(tokens.mean(0)) @ last
        else:
            gate = pool.attention
            hidden = torch.tanh(gate.value(tokens)) * torch.sigmoid(gate.gate(tokens))
            score = gate.score.weight[min(output, len(gate.score.weight) - 1)]
            weights = (hidden @ score).softmax(0)
            if isinstance(pool, AttentionPool):
                raw = pool.head.hidden(weights @ tokens) @ last
            else:
                raw = weights @ (pool.head.hidden(tokens) @ last)
        logits.append(pool.scale[output] * raw + pool.bias[output])
    return torch.stack(logits)


def test_it_is_the_formula_written_out_and_so_are_its_gradients(pool):  # S73
    tokens, bounds = tokens_of(63), bounds_of(LENGTHS)
    found = pool(tokens, bounds)
    expected = torch.stack([plainly(pool, own) for own in tokens.split(LENGTHS)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    direction = torch.randn(4, OUTPUTS, generator=torch.Generator().manual_seed(2))
    ours, plain = (
        torch.autograd.grad((one * direction).sum(), list(pool.parameters()))
        for one in (found, expected)
    )
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


def test_the_parts_of_tokens_add_up(pool):
    tokens, bounds = tokens_of(63), bounds_of(LENGTHS)
    found = pool.explain(tokens, bounds)
    assert torch.equal(found.logits, pool(tokens, bounds))
    assert (found.weights >= 0).all()
    sums = torch.stack([one.sum(0) for one in found.weights.split(LENGTHS)])
    torch.testing.assert_close(sums, torch.ones(4, OUTPUTS))
    assert (found.contributions is None) == (not isinstance(pool, AdditivePool))
    if found.contributions is not None:
        sums = torch.stack([one.sum(0) for one in found.contributions.split(LENGTHS)])
        torch.testing.assert_close(sums + pool.bias, found.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [attention, additive])
def test_each_output_has_an_attention_of_its_own_unless_they_share_one(make):
    tokens, bounds = tokens_of(20), bounds_of([20])
    own = stirred(make()).explain(tokens, bounds).weights
    assert not torch.allclose(own[:, 0], own[:, 1])
    shared = stirred(make(attention_per_output=False)).explain(tokens, bounds).weights
    assert torch.equal(shared[:, 0], shared[:, 1])


def test_without_a_hidden_layer_it_is_the_same_to_aggregate_first_or_last():
    one, other = stirred(attention(normalize=False)), stirred(additive())
    other.load_state_dict(one.state_dict())
    tokens, bounds = tokens_of(63), bounds_of(LENGTHS)
    torch.testing.assert_close(one(tokens, bounds), other(tokens, bounds), atol=1e-5, rtol=1e-5)
    deep, deep_other = stirred(attention(normalize=False, head_dims=[7])), additive(head_dims=[7])
    deep_other.load_state_dict(deep.state_dict())
    assert not torch.allclose(deep(tokens, bounds), deep_other(tokens, bounds), atol=1e-2)


def test_what_is_gathered_is_not_dropped_out_and_what_is_scored_is():  # S77
    pool = attention(dropout=0.5)  # as it starts, with almost equal weights
    tokens, bounds = tokens_of(63), bounds_of(LENGTHS)
    with torch.no_grad():
        pool.attention.score.weight.zero_()
    pool.eval()
    expected = pool(tokens, bounds)
    pool.train()
    torch.testing.assert_close(pool(tokens, bounds), expected)
    stirred(pool)
    assert not torch.allclose(pool(tokens, bounds), pool(tokens, bounds))
    pool.eval()
    assert torch.equal(pool(tokens, bounds), pool(tokens, bounds))


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(InputError, match=r"system.pool.dropout must be at least 0 and below 1"):
        attention(dropout=share)


def test_a_head_without_hidden_layers_is_linear(pool):  # S76
    assert MeanPool(DIM, OUTPUTS).head.hidden(tokens_of(2)).shape == (2, DIM)
    assert pool.head.last.weight.shape[0] == OUTPUTS


@pytest.mark.parametrize("name", POOLS)
def test_outputs_begin_near_what_is_known_beforehand(name):  # S84
    pool = POOLS[name]()
    rates = torch.tensor([0.01, 0.5, 0.9])
    pool.start_at(bias=rates.logit(), scale=torch.full((OUTPUTS,), 0.5))
    found = pool(tokens_of(63), bounds_of(LENGTHS)).sigmoid()
    torch.testing.assert_close(found, rates.expand(4, -1), atol=0.05, rtol=0)
    number = POOLS[name]()
    number.start_at(bias=torch.full((OUTPUTS,), 40.0), scale=torch.full((OUTPUTS,), 15.0))
    assert ((number(tokens_of(63), bounds_of(LENGTHS)) - 40).abs() < 8).all()


@pytest.mark.parametrize("num_outputs", [1, 2, 3, 82])  # S84
def test_there_may_be_any_number_of_outputs(num_outputs):
    for make in (attention, additive, mean):
        logits = make(num_outputs=num_outputs)(tokens_of(63), bounds_of(LENGTHS))
        assert logits.shape == (4, num_outputs)


def test_it_can_be_copied_and_sent_to_another_process(pool):  # S78
    tokens, bounds = tokens_of(63), bounds_of(LENGTHS)
    expected = pool(tokens, bounds)
    for same in (copy.deepcopy(pool), pickle.loads(pickle.dumps(pool))):
        assert torch.equal(same(tokens, bounds), expected)
    assert pool.state_dict()


def test_half_precision_around_it_changes_nothing(pool):
    tokens, bounds = tokens_of(63).bfloat16(), bounds_of(LENGTHS)
    expected = pool(tokens.float(), bounds)
    parameters = list(pool.parameters())
    grads = torch.autograd.grad(expected.sum(), parameters)
    with torch.autocast("cpu", torch.bfloat16):
        found = pool(tokens, bounds)
        assert torch.equal(found, expected)
        for one, other in zip(torch.autograd.grad(found.sum(), parameters), grads, strict=True):
            # What PyTorch multiplies in a backward under autocast is in half precision.
            torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)


def test_a_head_has_the_parameters_of_the_released_one():
    """The CT head of 82 findings: 768 to 384 to 82 with an attention of 384, and 952,264 numbers.

    Of those, two norms (3072), the bias of the scores, which a softmax takes away, and the bias of
    the head's last layer, which is that of the outputs (82 each), do nothing that others do not.
    """
    for make in (attention, additive):
        pool = make(dim=768, hidden_dim=384, num_outputs=82, head_dims=[384])
        assert sum(one.numel() for one in pool.parameters()) == 952_264 - 3_072 - 82 - 82


@pytest.mark.parametrize("make", [attention, additive])
def test_it_learns_where_to_look(make):
    """One token in a study decides: the mean of tokens hardly shows it, attention finds it."""
    generator = torch.Generator().manual_seed(0)
    lengths, signal = [30] * 60, torch.randn(DIM, generator=generator)
    truth = (torch.arange(60) % 2).float().unsqueeze(1)
    tokens = torch.randn(1800, DIM, generator=generator)
    planted = torch.arange(0, 1800, 60) + 30 + torch.randint(30, (30,), generator=generator)
    tokens[planted] += 2 * signal
    torch.manual_seed(0)
    pool = make(num_outputs=1)
    optimizer = torch.optim.Adam(pool.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(pool(tokens, bounds_of(lengths)), truth).backward()
        optimizer.step()
    found = pool.explain(tokens, bounds_of(lengths))
    assert ((found.logits > 0) == (truth == 1)).float().mean() > 0.95
    peaks = found.weights.reshape(60, 30).argmax(dim=1)[1::2] + torch.arange(30, 1800, 60)
    assert (peaks == planted).float().mean() > 0.8
