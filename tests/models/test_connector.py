"""What a series becomes for the language model depends on that series alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from neuro.errors import InputError
from neuro.models.connector import MlpConnector, PerceiverConnector

DIM, WIDTH, NUM_QUERIES = 24, 20, 5
LENGTHS = [7, 1, 12, 3, 7]  # five series


def bounds_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


@pytest.fixture(params=["mlp", "perceiver"])
def connector(request):
    torch.manual_seed(0)
    if request.param == "mlp":
        return MlpConnector(DIM, WIDTH)
    return PerceiverConnector(DIM, WIDTH, num_queries=NUM_QUERIES, num_heads=3)


@pytest.fixture
def tokens():
    return torch.randn(sum(LENGTHS), DIM, generator=torch.Generator().manual_seed(1))


def run(connector, tokens, lengths):
    """Return the features of each series."""
    features = connector(tokens, bounds_of(lengths), lengths)
    return features.split(connector.feature_lengths(lengths))


def test_packed_equals_one_by_one(connector, tokens):
    together = run(connector, tokens, LENGTHS)
    for features, own in zip(together, tokens.split(LENGTHS), strict=True):
        (alone,) = run(connector, own, [len(own)])
        torch.testing.assert_close(features, alone, atol=1e-5, rtol=1e-5)
        assert features.shape[1] == WIDTH


def test_gradients_of_a_pack_are_the_sum_of_its_series(connector, tokens):
    def gradients(*packs):
        connector.zero_grad()
        for own, lengths in packs:
            torch.cat(run(connector, own, lengths)).square().sum().backward()
        return {name: one.grad.clone() for name, one in connector.named_parameters()}

    packed = gradients((tokens, LENGTHS))
    each = gradients(*((own, [len(own)]) for own in tokens.split(LENGTHS)))
    for name, gradient in packed.items():
        torch.testing.assert_close(gradient, each[name], rtol=1e-3, atol=1e-4)
        # A bias of the keys moves all scores of a query alike.
        assert gradient.any() or name.endswith("bias"), name


def test_another_series_changes_nothing_of_this_one(connector, tokens):
    first, last = bounds_of(LENGTHS)[2:4].tolist()
    changed = tokens.clone()
    changed[first:last] += 1 + torch.arange(DIM)
    before, after = (run(connector, one, LENGTHS) for one in (tokens, changed))
    for place, (one, other) in enumerate(zip(before, after, strict=True)):
        assert torch.allclose(one, other) == (place != 2)


def test_a_series_has_as_many_features_as_was_said(connector, tokens):
    said = connector.feature_lengths(LENGTHS)
    assert said == (LENGTHS if connector.num_features is None else [NUM_QUERIES] * len(LENGTHS))
    assert len(connector(tokens, bounds_of(LENGTHS), LENGTHS)) == sum(said)


def test_the_order_of_the_tokens_does_not_matter_to_queries(tokens):
    torch.manual_seed(0)
    connector = PerceiverConnector(DIM, WIDTH, num_queries=NUM_QUERIES, num_heads=3)
    turned = torch.cat([own.flip(0) for own in tokens.split(LENGTHS)])
    for one, other in zip(
        *(run(connector, each, LENGTHS) for each in (tokens, turned)), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_token_keeps_its_place_where_each_becomes_a_feature(tokens):
    connector = MlpConnector(DIM, WIDTH)
    features = connector(tokens, bounds_of(LENGTHS), LENGTHS)
    changed = tokens.clone()
    changed[4] += torch.arange(DIM)
    moved = connector(changed, bounds_of(LENGTHS), LENGTHS) != features
    assert moved.any(dim=1).nonzero().flatten().tolist() == [4]


def test_host_and_device_are_told_the_same_bounds_of_the_queries(tokens):
    """On a CPU only the host's are read, on CUDA only the device's."""
    connector = PerceiverConnector(DIM, WIDTH, num_queries=NUM_QUERIES, num_heads=3)
    seen = []
    connector.layers[0].register_forward_pre_hook(lambda _, args: seen.extend(args[2:]))
    run(connector, tokens, LENGTHS)
    for segments, lengths in zip(seen, ([NUM_QUERIES] * 5, LENGTHS), strict=True):
        assert segments.bounds.tolist() == segments.host_bounds.tolist()
        assert segments.bounds.diff().tolist() == lengths


def test_queries_are_told_apart_and_each_sees_every_token(tokens):
    torch.manual_seed(0)
    connector = PerceiverConnector(DIM, WIDTH, num_queries=NUM_QUERIES, num_heads=3)
    own = tokens[:7].clone().requires_grad_()
    features = connector(own, bounds_of([7]), [7])
    assert all((one - other).abs().max() > 1e-3 for one, other in pairwise(features))
    for row in range(NUM_QUERIES):
        (gradient,) = torch.autograd.grad(features[row].square().sum(), own, retain_graph=True)
        assert gradient.abs().sum(dim=1).min() > 0


def test_the_size_of_what_an_encoder_gives_does_not_matter(connector, tokens):
    one, other = (connector(each, bounds_of(LENGTHS), LENGTHS) for each in (tokens, 50 * tokens))
    torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


# ---------------------------------------------------------------- whitening


@pytest.fixture
def narrow():
    """Tokens that have much in common and differ in few directions, in two packs."""
    draw = torch.Generator().manual_seed(2)
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=draw))[0]
    sizes = torch.logspace(1, -1.5, DIM)
    tokens = torch.randn(4000, DIM, generator=draw) * sizes @ turn + torch.linspace(-9, 9, DIM)
    return tokens.split([1000, 3000])


def test_whitened_tokens_have_nothing_in_common_and_no_direction_is_larger(connector, narrow):
    connector.whiten.fit(iter(narrow))
    white = connector.whiten(torch.cat(narrow))
    torch.testing.assert_close(white.mean(dim=0), torch.zeros(DIM), atol=1e-3, rtol=0)
    sizes = torch.linalg.eigvalsh(torch.cov(white.T))
    # A norm leaves two directions less, and the smallest are held back by the floor.
    assert 0.99 < sizes[-1] <= 1.01
    assert sizes[DIM // 2] > 0.9
    before = torch.linalg.eigvalsh(torch.cov(torch.cat(narrow).T))
    assert before[DIM // 2] / before[-1] < 0.01


def test_whitening_does_not_depend_on_how_tokens_are_packed(narrow):
    together, apart = MlpConnector(DIM, WIDTH), MlpConnector(DIM, WIDTH)
    together.whiten.fit([torch.cat(narrow)])
    apart.whiten.fit(narrow)
    torch.testing.assert_close(together.whiten.map, apart.whiten.map, atol=1e-2, rtol=1e-2)
    assert int(apart.whiten.num_seen) == 4000


def test_what_whitening_is_known_is_kept_and_nothing_is_read(narrow):
    first, other = MlpConnector(DIM, WIDTH), MlpConnector(DIM, WIDTH)
    first.whiten.fit(narrow)
    other.load_state_dict(first.state_dict())

    def never():
        raise AssertionError("read")
        yield

    other.whiten.fit(never())
    assert torch.equal(other.whiten.map, first.whiten.map)


def test_before_it_is_fitted_whitening_is_a_norm(tokens):
    whitened = MlpConnector(DIM, WIDTH).whiten(tokens)
    torch.testing.assert_close(whitened, F.layer_norm(tokens, (DIM,), eps=1e-6))


@pytest.mark.parametrize("wrong", [{"num_heads": 5}, {"num_queries": 0}, {"num_layers": 0}])
def test_an_impossible_size_is_an_error(wrong):
    with pytest.raises(InputError, match=r"num_heads must divide the encoder's width 24.*got"):
        PerceiverConnector(DIM, WIDTH, **{"num_heads": 3, **wrong})
