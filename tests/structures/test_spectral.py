"""Effective resistances of layer graphs, against the pseudo-inverse, networkx and exact arithmetic."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampled import sampled
from torch import Tensor

from secateur.structures.spectral import effective_resistance, layer_graph, leverage
from secateur.structures.spectral.graph import bipartite
from secateur.structures.spectral.schur import bytes_needed, full_precision
from secateur.structures.spectral.series import gram_certificate, moments

KINDS = ("dense", "sparse", "decades", "isolated", "blocks")


def graph(kind: str, n1: int, n2: int, seed: int) -> Tensor:
    """Make a random graph in float64; at least one edge."""
    g = torch.Generator().manual_seed(seed)
    S = torch.rand(n1, n2, generator=g, dtype=torch.float64)
    if kind == "sparse":
        S *= torch.rand(n1, n2, generator=g) < 0.25
    if kind == "decades":
        S = 10 ** (-8 * S) * (torch.rand(n1, n2, generator=g) < 0.6)
    if kind == "isolated":
        S[:: 2 + seed % 3] = 0
        S[:, 1 :: 2 + seed % 2] = 0
    if kind == "blocks":
        S[: n1 // 2, n2 // 2 :] = 0
        S[n1 // 2 :, : n2 // 2] = 0
    if not S.any():
        S[0, 0] = 1
    return S


def dense_resistance(S: Tensor) -> Tensor:
    """The definition: R = L^+_uu + L^+_vv - 2 L^+_uv, infinite between components."""
    n1, n2 = S.shape
    A = torch.zeros(n1 + n2, n1 + n2, dtype=torch.float64)
    A[:n1, n1:], A[n1:, :n1] = S, S.T
    P = torch.linalg.pinv(torch.diag(A.sum(1)) - A, hermitian=True, rtol=1e-13)
    p = P.diagonal()
    R = p[:n1, None] + p[None, n1:] - 2 * P[:n1, n1:]
    label = {
        node: i
        for i, part in enumerate(nx.connected_components(nx.from_numpy_array(A.numpy())))
        for node in part
    }
    apart = torch.tensor([[label[u] != label[n1 + v] for v in range(n2)] for u in range(n1)])
    return R.masked_fill(apart, math.inf)


def relative(a: Tensor, b: Tensor) -> float:
    """Largest relative difference of finite entries; the same entries must be infinite."""
    assert torch.equal(a.isinf(), b.isinf())
    finite = ~b.isinf()
    return float(((a[finite] - b[finite]).abs() / b[finite]).max()) if finite.any() else 0.0


@pytest.mark.parametrize("block", sampled(range(6), 0))
@pytest.mark.parametrize("kind", KINDS)
def test_exact_is_the_pseudo_inverse(kind: str, block: int) -> None:
    """Forty random graphs of each kind in a block, 200 in all; 1,200 in all blocks."""
    worst = 0.0
    for seed in range(40 * block, 40 * (block + 1)):
        S = graph(kind, 2 + 7 * seed % 23, 2 + 5 * seed % 19, seed)
        result = effective_resistance(S, "exact")
        worst = max(worst, relative(result.values, effective_resistance(S, "pinv").values))
        assert result.method == "exact"
        assert result.foster < 1e-11
        if kind != "decades":
            assert relative(result.values, dense_resistance(S)) < 1e-9
    # Over eight decades the pseudo-inverse itself loses digits; see the rational arithmetic below.
    assert worst < (1e-7 if kind == "decades" else 1e-8)


def exact_resistance(S: Tensor, u: int, v: int) -> float:
    """R(u, v) of a connected graph in rational arithmetic: ground v, solve L x = e_u, R = x_u."""
    n1, n2 = S.shape
    n = n1 + n2
    L = [[Fraction(0)] * n for _ in range(n)]
    for a in range(n1):
        for b in range(n2):
            w = Fraction(float(S[a, b]))
            for i, j in ((a, n1 + b), (n1 + b, a)):
                L[i][j] -= w
                L[i][i] += w
    keep = [i for i in range(n) if i != n1 + v]
    rows = [[L[i][j] for j in keep] + [Fraction(int(i == u))] for i in keep]
    for k in range(len(rows)):
        pivot = next(r for r in range(k, len(rows)) if rows[r][k])
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [x / rows[k][k] for x in rows[k]]
        for r in range(len(rows)):
            if r != k and rows[r][k]:
                rows[r] = [x - rows[r][k] * y for x, y in zip(rows[r], rows[k], strict=True)]
    return float(rows[keep.index(u)][-1])


@pytest.mark.parametrize("seed", range(4))
def test_eight_decades_against_rational_arithmetic(seed: int) -> None:
    S = 10 ** (-8 * torch.rand(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    values = effective_resistance(S, "exact").values
    truth = torch.tensor(
        [[exact_resistance(S, u, v) for v in range(4)] for u in range(5)], dtype=torch.float64
    )
    assert relative(values, truth) < 1e-8


def test_networkx_agrees() -> None:
    S = graph("sparse", 12, 9, 3)
    values = effective_resistance(S, "exact").values
    G = nx.Graph()
    G.add_weighted_edges_from((u, 12 + v, float(S[u, v])) for u, v in torch.nonzero(S).tolist())
    for part in nx.connected_components(G):
        sub = G.subgraph(part)
        for u, v in sub.edges:
            r = nx.resistance_distance(sub, u, v, weight="weight", invert_weight=False)
            assert math.isclose(r, float(values[min(u, v), max(u, v) - 12]), rel_tol=1e-6)


def test_known_values() -> None:
    assert effective_resistance(torch.tensor([[4.0]])).values.item() == 0.25
    complete = effective_resistance(torch.ones(7, 5, dtype=torch.float64), "exact").values
    assert torch.allclose(complete, torch.full_like(complete, 11 / 35))
    path = torch.tensor([[1.0, 0.0], [2.0, 4.0]], dtype=torch.float64)
    assert torch.allclose(
        effective_resistance(path, "exact").values, torch.tensor([[1, 1.75], [0.5, 0.25]]).double()
    )


@given(n1=st.integers(1, 30), n2=st.integers(1, 30), seed=st.integers(0, 999), kind=st.sampled_from(KINDS))
@settings(max_examples=60)
def test_foster_symmetry_and_scale(n1: int, n2: int, seed: int, kind: str) -> None:
    S = graph(kind, n1, n2, seed)
    result = effective_resistance(S, "exact")
    lev = leverage(S, result)
    nodes = int((S.sum(1) > 0).sum() + (S.sum(0) > 0).sum())
    assert math.isclose(float(lev.sum()), nodes - result.components, rel_tol=1e-9)
    assert relative(effective_resistance(S.T, "exact").values.T, result.values) < 1e-7
    assert relative(effective_resistance(S * 2.0**-30, "exact").values * 2.0**-30, result.values) < 1e-12


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_units_do_not_overflow_float32(scale: float) -> None:
    S = graph("dense", 40, 60, 0).float()
    scaled = effective_resistance(S * scale, "exact").values * scale
    assert relative(scaled.double(), effective_resistance(S.double(), "exact").values) < 1e-5


@given(
    n1=st.integers(50, 120),
    n2=st.integers(50, 90),
    seed=st.integers(0, 99),
    density=st.sampled_from([0.15, 0.5, 1]),
)
@settings(max_examples=25)
def test_the_bound_of_the_series_holds(n1: int, n2: int, seed: int, density: float) -> None:
    g = torch.Generator().manual_seed(seed)
    S = torch.randn(n1, n2, generator=g, dtype=torch.float64).abs() * (
        torch.rand(n1, n2, generator=g) < density
    )
    truth = effective_resistance(S, "exact").values
    for rank in (0, 2):
        result = effective_resistance(S, "series", rank=rank)
        finite = S > 0
        error = float(((result.values - truth).abs() / truth)[finite].max())
        assert error <= result.bound
        assert result.method.startswith("series")


@given(seed=st.integers(0, 99), density=st.sampled_from([0.1, 0.5, 1]))
@settings(max_examples=25)
def test_the_certificates_bound_sigma_2_from_above(seed: int, density: float) -> None:
    g = torch.Generator().manual_seed(seed)
    S = torch.rand(60, 40, generator=g, dtype=torch.float64) * (torch.rand(60, 40, generator=g) < density)
    ready = bipartite(S)
    N = ready.S / (ready.d1[:, None] * ready.d2[None, :]).sqrt()
    sigma = float(torch.linalg.svdvals(N)[ready.components])
    H = ready.S.T @ (ready.S / ready.d1[:, None])
    assert sigma <= gram_certificate(H, ready, ready.d2) + 1e-12
    assert sigma**2 <= moments(ready).rest + 1e-12


def test_triplets_repair_weakly_joined_blocks() -> None:
    S = torch.rand(150, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    S[:75, 50:] *= 1e-4
    S[75:, :50] *= 1e-4
    truth = effective_resistance(S, "exact").values
    plain = effective_resistance(S, "series")
    repaired = effective_resistance(S, "series", rank=4)
    assert plain.bound == math.inf
    assert relative(plain.values, truth) > 0.3
    assert repaired.method == "series+1"
    assert relative(repaired.values, truth) <= repaired.bound < 0.02


def test_auto_says_what_it_chose_and_escalates() -> None:
    g = torch.Generator().manual_seed(0)
    S = torch.randn(700, 300, generator=g).abs()
    loose, strict = effective_resistance(S, tol=1e-2), effective_resistance(S, tol=1e-5)
    assert (loose.method, strict.method, strict.dtype) == ("series", "exact", torch.float32)
    assert loose.bound <= 1e-2
    assert "1e-05" in strict.why
    weak = torch.block_diag(torch.ones(40, 60), torch.ones(40, 60))
    weak[0, 119] = 1e-7
    wide = effective_resistance(weak)
    assert wide.dtype == torch.float64
    assert "float32" in wide.why
    assert relative(wide.values.double(), effective_resistance(weak.double(), "pinv").values) < 1e-5
    half = effective_resistance(torch.rand(6, 5, generator=g).half())
    assert half.values.dtype == torch.float32


def test_auto_repairs_wide_layers() -> None:
    g = torch.Generator().manual_seed(0)
    S = torch.randn(1500, 1030, generator=g).abs()
    S[:750, 500:] *= 1e-3
    S[750:, :500] *= 1e-3
    result = effective_resistance(S)
    assert result.method == "series+1"
    assert relative(result.values, effective_resistance(S, "exact").values) <= result.bound <= 1e-2


def test_float32_is_accurate_on_dense_layers() -> None:
    S = torch.randn(900, 128, generator=torch.Generator().manual_seed(1)).abs()
    result = effective_resistance(S, "exact")
    assert result.dtype == torch.float32
    assert relative(result.values.double(), effective_resistance(S.double(), "exact").values) < 1e-5


def test_batches_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    S = torch.rand(5, 30, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    batch = effective_resistance(S, "exact")
    assert batch.components == 5
    for one, values in zip(S, batch.values, strict=True):
        assert relative(values, effective_resistance(one, "exact").values) < 1e-12
    S[1, :, 3:] = 0
    S[2] = 0
    loop = effective_resistance(S)
    assert relative(loop.values[1], effective_resistance(S[1]).values) < 1e-12
    assert loop.values[2].isinf().all()
    monkeypatch.setattr("secateur.structures.spectral.schur._BLOCK", 64)
    small = torch.rand(1100, 140, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    pieces = effective_resistance(small, "exact").values
    monkeypatch.undo()
    assert relative(pieces, effective_resistance(small, "exact").values) < 1e-12
    assert relative(effective_resistance(small.T, "exact").values.T, pieces) < 1e-12


def test_memory_is_capped() -> None:
    S = torch.rand(600, 400)
    with pytest.raises(MemoryError, match="series"):
        effective_resistance(S, "exact", memory=2**20)
    assert effective_resistance(S, "series", memory=2**20).method == "series"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_layer_fits_the_stated_memory(dtype: torch.dtype) -> None:
    assert bytes_needed(14336, 4096, dtype, dtype) < 3 * 2**30
    assert bytes_needed(14336, 4096, torch.float64, torch.float32) < 3 * 2**30


PEAK = """
import torch
from pathlib import Path
from secateur.structures.spectral import effective_resistance

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith(field)).split()[1]) * 1024

S = torch.rand(6000, 2048, generator=torch.Generator().manual_seed(0))
effective_resistance(S[:100, :100], "exact")
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
effective_resistance(S, "exact")
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of memory")
def test_the_stated_memory_is_an_upper_bound() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    stated = bytes_needed(6000, 2048, torch.float32, torch.float32)
    assert 0.3 * stated < int(done.stdout) <= stated


@pytest.mark.parametrize(
    ("scores", "match"),
    [
        (torch.tensor([[-1.0, 2.0]]), "non-negative"),
        (torch.tensor([[math.nan, 2.0]]), "NaN"),
        (torch.tensor([[math.inf, 2.0]]), "infinity"),
        (torch.zeros(2, 2), "all scores are zero"),
        (torch.ones(3), "got shape"),
        (torch.ones(0, 3), "non-empty"),
    ],
)
def test_what_is_no_graph_is_refused(scores: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        effective_resistance(scores)
    with pytest.raises(ValueError, match=match):
        leverage(scores)


def test_options_are_checked() -> None:
    S = torch.ones(2, 2)
    for options in ({"method": "fast"}, {"tol": 0}, {"rank": 2}, {"method": "series", "rank": -1}):
        with pytest.raises(ValueError, match=r"method|rank"):
            effective_resistance(S, **options)
    with pytest.raises(ValueError, match="do not fit"):
        leverage(torch.ones(3, 3), effective_resistance(S))


@pytest.mark.parametrize("method", ["exact", "series", "auto"])
def test_a_sum_that_is_not_fosters_is_an_error(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that went wrong, here one of a hundred, are noticed by the identity."""
    place = "secateur.structures.spectral.resistance."
    S = torch.rand(90, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setattr(place + "schur", lambda *_: (torch.ones(90, 60), 1.0, 149 * 1.01))
    monkeypatch.setattr(place + "series", lambda *_: (torch.ones(90, 60), 149 * 1.5))
    with pytest.raises(ArithmeticError, match=r"Foster.*nodes - components"):
        effective_resistance(S, method)


@pytest.mark.parametrize("choose", ["legacy", "new"])
def test_neither_way_to_ask_for_less_than_float32_reaches_the_products(choose: str) -> None:
    places = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    if not all(hasattr(place, "fp32_precision") for place in places):
        pytest.skip("this torch has only the legacy way")
    before, values = torch.get_float32_matmul_precision(), [place.fp32_precision for place in places]
    try:
        if choose == "legacy":
            torch.set_float32_matmul_precision("medium")
        else:
            for place in places:
                place.fp32_precision = "tf32"
        asked = [place.fp32_precision for place in places]
        assert "ieee" not in asked
        with full_precision():
            assert [place.fp32_precision for place in places] == ["ieee", "ieee"]
            effective_resistance(torch.ones(9, 5))
        assert [place.fp32_precision for place in places] == asked
    finally:
        for place, value in zip(places, values, strict=True):
            place.fp32_precision = value
        torch.set_float32_matmul_precision(before)


def test_graphs_that_no_type_can_resolve_are_errors() -> None:
    S = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)).double()
    S[0, 7] = 1e-17
    with pytest.raises(ArithmeticError, match="float64"):
        effective_resistance(S, "exact")


@pytest.mark.parametrize(
    ("shape", "options", "graphs"),
    [
        ((6, 4), {}, (1, 4, 6)),
        ((6, 4, 3, 2), {}, (1, 24, 6)),
        ((6, 2, 3, 3), {"groups": 2}, (2, 18, 3)),
        ((8, 1, 3), {"groups": 8}, (8, 3, 1)),
        ((4, 6, 3), {"out_axis": 1, "in_axis": 0}, (1, 12, 6)),
        ((4, 3, 2), {"out_axis": 1, "in_axis": 0, "groups": 2}, (2, 4, 3)),
        ((12, 5), {"gates": 4}, (4, 5, 3)),
    ],
)
def test_layers_unfold_and_fold(
    shape: tuple[int, ...], options: dict[str, int], graphs: tuple[int, ...]
) -> None:
    W = torch.rand(shape)
    result = layer_graph(W, **options)
    assert tuple(result.scores.shape) == graphs
    assert torch.equal(result.fold(result.scores), W)
    with pytest.raises(ValueError, match="two axes"):
        layer_graph(W, 0, 0)
    with pytest.raises(ValueError, match="split"):
        layer_graph(W, groups=5)


def test_convolution_unfolds_as_published() -> None:
    W = torch.rand(6, 4, 3, 2)
    matrix = layer_graph(W).scores[0]
    for o, c, i, j in ((0, 0, 0, 0), (5, 3, 2, 1), (2, 1, 0, 1)):
        assert matrix[c * 6 + i * 2 + j, o] == W[o, c, i, j]
