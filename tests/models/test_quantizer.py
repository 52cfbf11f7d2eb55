"""One codebook: its formulas by hand, and one test for each way a codebook is known to die."""

import ast
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.multiprocessing.spawn import start_processes
from torch.utils._python_dispatch import TorchDispatchMode

from slicebook.config import LossConfig, QuantizerConfig, TokenizerConfig
from slicebook.models import quantizer as module
from slicebook.models.losses import loss
from slicebook.models.quantizer import Quantizer, kmeans, nearest_code, usage_of
from slicebook.models.tokenizer import Reconstruction, Tokenizer


def vectors_of(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def codebook(codes, counts=None, **config):
    """A codebook at these codes, each as if hit `counts` times a step."""
    codes = torch.as_tensor(codes, dtype=torch.float32)
    quantizer = Quantizer(len(codes), codes.shape[1], QuantizerConfig(**config))
    counts = torch.ones(len(codes)) if counts is None else torch.as_tensor(counts, dtype=torch.float32)
    quantizer.ema_embed_sum.copy_(codes * counts[:, None])
    quantizer.ema_cluster_size.copy_(counts)
    return quantizer


# --- Definitions


@pytest.mark.parametrize("n", [0, 1, 7, 300])
def test_the_nearest_code_is_that_of_brute_force(n):
    vectors, codes = vectors_of(n, 5), vectors_of(33, 5, seed=1) * 3
    distances = (vectors[:, None] - codes[None]).square().sum(2)
    assert nearest_code(vectors, codes).tolist() == distances.argmin(1).tolist()


def test_blocks_of_any_size_find_the_same_codes(monkeypatch):
    vectors, codes = vectors_of(100, 4), vectors_of(16, 4, seed=1)
    whole = nearest_code(vectors, codes)
    for elements in (1, 16 * 7, 16 * 99):
        monkeypatch.setattr(module, "BLOCK_ELEMENTS", elements)
        assert nearest_code(vectors, codes).equal(whole)


def test_distances_are_made_a_block_at_a_time():
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                made.append(result.numel())
            return result

    with Watch():
        nearest_code(vectors_of(4096, 2), vectors_of(1024, 2))
    assert max(made) <= module.BLOCK_ELEMENTS < 4096 * 1024


def test_distances_are_in_float32_under_autocast():
    # In bfloat16, 1000 and 1001 are one number.
    codes = torch.tensor([[1000.0], [1001.0]])
    quantizer = codebook(codes).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nearest_code(torch.tensor([[1001.0], [1000.0]]), codes).tolist() == [1, 0]
        quantized = quantizer(torch.tensor([[1001.0], [1000.0]]))
    assert quantized.tokens.tolist() == [1, 0]
    assert (
        quantizer.ema_embed_sum.dtype
        == quantizer.ema_cluster_size.dtype
        == quantizer.codes.dtype
        == torch.float32
    )
    torch.testing.assert_close(quantizer.codes, codes, rtol=1e-5, atol=0)


def test_latents_in_half_precision_teach_in_float32():
    quantizer = codebook([[0.0], [10.0]]).train()
    quantized = quantizer(torch.tensor([[9.0]], dtype=torch.bfloat16))
    assert quantized.vectors.dtype == torch.bfloat16
    torch.testing.assert_close(quantizer.ema_embed_sum[1], torch.tensor([10 * 0.99 + 9 * 0.01]))


def test_codes_are_sums_over_laplace_smoothed_counts():
    quantizer = codebook([[2.0], [5.0]], counts=[3.0, 0.0], epsilon=0.5)
    quantizer.ema_embed_sum.copy_(torch.tensor([[6.0], [1.0]]))
    # (count + ε) · n / (n + K·ε), with n = 3, K = 2, ε = 1/2
    torch.testing.assert_close(quantizer.codes, torch.tensor([[6 / (3.5 * 3 / 4)], [1 / (0.5 * 3 / 4)]]))


def test_a_step_moves_sums_and_counts_by_the_average_of_appendix_a1():
    quantizer = codebook([[0.0, 0.0], [10.0, 10.0]], counts=[2.0, 4.0], decay=0.9).train()
    quantizer(torch.tensor([[1.0, 0.0], [9.0, 9.0], [11.0, 12.0]]))
    torch.testing.assert_close(
        quantizer.ema_cluster_size, torch.tensor([0.9 * 2 + 0.1 * 1, 0.9 * 4 + 0.1 * 2])
    )
    torch.testing.assert_close(
        quantizer.ema_embed_sum, torch.tensor([[0.1 * 1, 0.0], [0.9 * 40 + 0.1 * 20, 0.9 * 40 + 0.1 * 21]])
    )


def test_the_commitment_is_the_mean_squared_distance_to_the_code():
    quantizer = codebook([[0.0, 0.0], [4.0, 4.0]], epsilon=1e-12)
    quantized = quantizer.eval()(torch.tensor([[1.0, 0.0], [4.0, 2.0]]))
    torch.testing.assert_close(quantized.commitment, torch.tensor((1 + 0 + 0 + 4) / 4))


def test_the_gradient_passes_straight_through_and_the_value_is_the_code():
    quantizer = codebook([[0.0, 0.0], [4.0, 4.0]], epsilon=1e-12).eval()
    vectors = torch.tensor([[1.0, 0.5], [3.0, 5.0]], requires_grad=True)
    quantized = quantizer(vectors)
    torch.testing.assert_close(quantized.vectors, torch.tensor([[0.0, 0.0], [4.0, 4.0]]))
    (quantized.vectors * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
    assert vectors.grad.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_tokens_are_looked_up_in_any_shape():
    quantizer = codebook([[1.0, 2.0], [3.0, 4.0]], epsilon=1e-12)
    vectors = quantizer.dequantize(torch.tensor([[[1, 0]], [[0, 0]]]))
    torch.testing.assert_close(vectors, torch.tensor([[[[3.0, 4], [1, 2]]], [[[1, 2], [1, 2]]]]))


def test_the_mean_code_weighs_codes_by_their_use():
    assert codebook([[0.0], [4.0]], counts=[3.0, 1.0]).mean_code.tolist() == [1.0]


def test_evaluation_changes_nothing():
    quantizer = Quantizer(8, 4).eval()
    before = {name: value.clone() for name, value in quantizer.named_buffers()}
    quantizer(vectors_of(50, 4), reset_dead_codes=True)
    assert all(value.equal(before[name]) for name, value in quantizer.named_buffers())


def test_a_codebook_has_nothing_for_the_optimiser():
    assert list(Quantizer(8, 4).parameters()) == []


# --- k-means


def test_kmeans_finds_planted_clusters():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    vectors = (centres[:, None] + 0.1 * vectors_of(4 * 50, 2).view(4, 50, 2)).reshape(-1, 2)
    best = min(
        (kmeans(vectors, 8, torch.Generator().manual_seed(seed))[0] for seed in range(3)),
        key=lambda means: torch.cdist(vectors, means).min(1).values.mean(),
    )
    assert torch.cdist(centres, best).min(1).values.max() < 0.5


def test_kmeans_returns_means_and_how_many_vectors_each_holds():
    vectors = torch.tensor([[0.0], [0.2], [0.4], [10.0]])
    means, counts = kmeans(vectors, 2, torch.Generator().manual_seed(0))
    clusters = sorted(zip(means.flatten().tolist(), counts.tolist(), strict=True))
    assert np.allclose(clusters, [(0.2, 3), (10.0, 1)], atol=1e-3)


def test_kmeans_of_fewer_vectors_than_means_gives_finite_distinct_means():
    means, counts = kmeans(vectors_of(3, 2), 16, torch.Generator().manual_seed(0))
    assert means.isfinite().all()
    assert counts.sum() == 3
    assert len({tuple(mean) for mean in means.tolist()}) == 16


def test_the_start_puts_the_codes_at_the_means_with_counts_that_sum_as_one_a_code():
    vectors = torch.cat([vectors_of(90, 2) * 0.1, vectors_of(10, 2) * 0.1 + 10])
    quantizer = Quantizer(2, 2)
    quantizer.init_from_kmeans(vectors, torch.Generator().manual_seed(0))
    order = quantizer.ema_cluster_size.argsort()
    torch.testing.assert_close(quantizer.ema_cluster_size[order], torch.tensor([0.2, 1.8]))
    torch.testing.assert_close(
        quantizer.codes[order],
        torch.stack([vectors[90:].mean(0), vectors[:90].mean(0)]),
        rtol=1e-3,
        atol=1e-3,
    )


# --- Usage


def test_usage_and_perplexity_by_hand():
    usage = usage_of(torch.tensor([2.0, 1.0, 1.0, 0.0]))
    assert usage.utilization == 0.75
    assert usage.perplexity == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)))
    assert usage_of(torch.ones(64)).perplexity == pytest.approx(64)
    assert usage_of(torch.zeros(4)) == module.Usage(0.0, 0.0)


def test_usage_counts_training_tokens_until_it_is_reset():
    quantizer = codebook([[0.0], [4.0]])
    quantizer.train()(torch.tensor([[0.1], [0.2]]))
    quantizer.train()(torch.tensor([[4.0]]))
    quantizer.eval()(torch.tensor([[4.0]]))
    assert quantizer.code_hits.tolist() == [2.0, 1.0]
    assert quantizer.usage().utilization == 1.0
    quantizer.reset_usage()
    assert quantizer.usage().utilization == 0.0


# --- Causes of death


@pytest.mark.parametrize("steps", [1, 200, 20_000])
def test_an_unused_code_keeps_a_finite_norm_and_stays_reachable(steps):
    # Cause: counts that start at 0 beside sums that start at the codes; norms jump to 8·10⁵ after a step.
    quantizer = Quantizer(16, 4).train()
    start = quantizer.codes.norm(dim=1).max()
    for _ in range(min(steps, 200)):
        quantizer(torch.zeros(8, 4))
    quantizer.ema_embed_sum.mul_(
        0.99 ** (steps - min(steps, 200))
    )  # what as many steps more do to unused codes,
    quantizer.ema_cluster_size.mul_(0.99 ** (steps - min(steps, 200)))  # underflow included
    quantizer.ema_cluster_size[0] = 8.0
    assert quantizer.codes.isfinite().all()
    assert quantizer.codes.norm(dim=1).max() <= 1.01 * start
    for code in range(16) if steps < 1000 else ():
        assert nearest_code(quantizer.codes[code : code + 1], quantizer.codes).item() == code


def test_a_dead_code_comes_alive_and_is_not_put_back_by_the_next_updates():
    # Cause: revival writes codes that the running averages of the same or the next call write back.
    torch.manual_seed(0)
    quantizer = codebook([[0.0], [1000.0]], counts=[8.0, 0.01], reset_below=0.03).train()
    data = torch.tensor([[-1.0], [1.0]] * 4)
    quantizer(data, reset_dead_codes=True)
    revived = quantizer.codes[1].item()
    assert abs(revived) == pytest.approx(1, abs=0.01)
    quantizer.reset_usage()
    for _ in range(5):
        quantizer(data)
    assert quantizer.codes[1].item() == pytest.approx(revived, abs=0.05)
    assert quantizer.code_hits[1] == 5 * 4


def test_only_dead_codes_are_revived():
    quantizer = codebook([[0.0], [5.0], [9.0]], counts=[1.0, 1.0, 0.01]).train()
    before = quantizer.codes
    quantizer(torch.tensor([[0.0], [5.0]]), reset_dead_codes=True)
    torch.testing.assert_close(quantizer.codes[:2], before[:2], rtol=1e-4, atol=0)
    assert quantizer.codes[2].item() in (pytest.approx(0, abs=0.01), pytest.approx(5, abs=0.01))


def test_nothing_is_revived_unless_asked():
    quantizer = codebook([[0.0], [1000.0]], counts=[8.0, 1e-6]).train()
    quantizer(torch.zeros(4, 1))
    assert quantizer.codes[1].item() > 50


def test_whoever_moves_a_code_moves_its_sum_and_its_count():
    quantizer = codebook([[0.0], [1000.0]], counts=[8.0, 0.0], decay=0.5).train()
    quantizer(torch.full((4, 1), 2.0), reset_dead_codes=True)
    # After the update the first count is 0.5·8 + 0.5·4 = 6; the revived code takes the mean count, 3.
    assert quantizer.ema_cluster_size.tolist() == [6.0, 3.0]
    assert quantizer.ema_embed_sum.tolist() == [[4.0], [6.0]]


@pytest.mark.parametrize("architecture", ["ladder", "vqvae2"])
def test_the_commitment_of_every_level_pulls_on_the_encoder(architecture):
    # Cause: the commitment of the second and later levels sends no gradient.
    sizes = TokenizerConfig(
        architecture=architecture, scaling_rates=(4, 2, 2), codebook_sizes=(8, 8, 8), code_dim=4, width=16
    )
    torch.manual_seed(0)
    tokenizer = Tokenizer(sizes)
    images = torch.randn(2, 1, 32, 32)
    first = next(tokenizer.network.parameters())
    for level in range(3):
        captured: list[torch.Tensor] = []
        hook = tokenizer.codebook(level).register_forward_hook(
            lambda _module, _given, output, kept=captured: kept.append(output.commitment)
        )
        tokenizer(images)
        hook.remove()
        (gradient,) = torch.autograd.grad(captured[0], [first])
        assert gradient.abs().sum() > 0, level


def test_the_commitment_acts_on_the_encoder_and_not_on_the_code():
    # Cause: β on the wrong term. The gradient is β·2·(vector - code) / elements, at the vectors alone.
    quantizer = codebook([[1.0, 0.0]], epsilon=1e-12).train()
    vectors = torch.tensor([[3.0, 1.0]], requires_grad=True)
    drawn = Reconstruction(torch.zeros(1, 1, 16, 16), (), quantizer(vectors).commitment)
    loss(drawn, torch.zeros(1, 1, 16, 16), LossConfig(commitment=0.25)).total.backward()
    torch.testing.assert_close(vectors.grad, 0.25 * torch.tensor([[2.0, 1.0]]))
    assert not any(buffer.requires_grad for buffer in quantizer.buffers())


def test_all_that_a_codebook_learned_is_saved():
    # Cause: "needs initialising" is not saved, and resuming starts the codebook anew.
    quantizer = Quantizer(8, 4).train()
    quantizer.init_from_kmeans(vectors_of(100, 4), torch.Generator().manual_seed(0))
    quantizer(vectors_of(50, 4), reset_dead_codes=True)
    again = Quantizer(8, 4).train()
    again.load_state_dict(quantizer.state_dict())
    for copy in (quantizer, again):
        torch.manual_seed(1)
        copy(vectors_of(50, 4, seed=2), reset_dead_codes=True)
    assert again.codes.equal(quantizer.codes)
    assert set(quantizer.state_dict()) == {"ema_embed_sum", "ema_cluster_size"}


def _learn_apart(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)  # the ranks start, see and draw different things
    quantizer = Quantizer(16, 4, QuantizerConfig(decay=0.5)).train()
    quantizer.init_from_kmeans(torch.randn(64, 4) + rank, torch.Generator().manual_seed(rank))
    states = [quantizer.ema_embed_sum.clone()]
    for step in range(6):
        quantizer(torch.randn(4, 4) + rank, reset_dead_codes=step % 2 == 1)
        states += [
            quantizer.ema_embed_sum.clone(),
            quantizer.ema_cluster_size.clone(),
            quantizer.code_hits.clone(),
        ]
    save_file({f"{i:02}": state for i, state in enumerate(states)}, f"{folder}/{rank}.safetensors")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes remember of k-means, six updates and three revivals."""
    folder = str(tmp_path_factory.mktemp("ranks"))
    with warnings.catch_warnings():
        # A fork imports nothing anew. Python 3.12 warns of one beside threads; no thread here holds a lock.
        warnings.simplefilter("ignore", DeprecationWarning)
        start_processes(_learn_apart, (folder,), nprocs=2, start_method="fork")
    states = [load_file(f"{folder}/{rank}.safetensors") for rank in range(2)]
    return [[tensors[name] for name in sorted(tensors)] for tensors in states]


def test_two_processes_never_drift_apart(ranks):
    # Cause: revival (or k-means) drawn by every rank for itself.
    first, second = ranks
    assert [a.equal(b) for a, b in zip(first, second, strict=True)] == [True] * len(first)
    assert not first[0].equal(first[-3])


def test_statistics_are_summed_over_processes(ranks):
    assert ranks[0][-1].sum() == 6 * 2 * 4


# --- No waiting for the device

FORBIDDEN = {
    *("item", "tolist", "numpy", "cpu", "nonzero", "argwhere", "unique", "masked_select", "bincount"),
    *("one_hot", "synchronize", "equal", "allclose", "any", "all"),
}
# Read once a validation, never in a step.
EXEMPT = {"usage", "usage_of"}


def faults(source):
    """Lines of a source in which the host would wait for the device."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef) or function.name in EXEMPT:
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN:
                yield f"{function.name}:{node.lineno}: .{node.attr}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("float", "int", "bool"):
                yield f"{function.name}:{node.lineno}: {ast.unparse(node.func)}()"
            if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Store):
                index = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
                mask = [part for part in index if isinstance(part, ast.Compare | ast.BoolOp | ast.UnaryOp)]
                mask = [part for part in mask if not getattr(getattr(part, "operand", None), "value", None)]
                named = [part for part in index if isinstance(part, ast.Name)]
                if mask or any(part.id in ("dead", "chosen", "mask") for part in named):
                    yield f"{function.name}:{node.lineno}: a mask as an index"


def test_no_line_of_a_training_step_reads_the_device():
    assert list(faults(Path(module.__file__).read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    ["x.item()", "x.nonzero()", "x[x > 0]", "x[dead]", "x[~x]", "float(x)", "x.cpu()", "x.tolist()"],
)
def test_the_search_for_such_lines_finds_one(line):
    assert list(faults(f"def step(x, dead):\n    return {line}"))


class NoWaiting(TorchDispatchMode):
    """Fails at every operation that would make the host wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal"), name
        if name in ("index", "index_put", "index_put_"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), "a mask as an index"
        return func(*args, **(kwargs or {}))


def test_no_operation_of_a_training_step_waits_for_the_device():
    quantizer = Quantizer(32, 4).train()
    vectors = vectors_of(100, 4).requires_grad_(True)
    with NoWaiting():
        quantized = quantizer(vectors, reset_dead_codes=True)
        (quantized.vectors.sum() + quantized.commitment).backward()
        quantizer.dequantize(quantized.tokens)
    with NoWaiting(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        quantizer.usage()


@pytest.mark.parametrize("k", [256, 1024, 1000])
def test_the_first_of_equally_near_codes_is_taken_at_any_size_of_codebook(k):
    codes = torch.randint(-2, 3, (k, 3)).float()  # many codes stand at one place
    vectors = torch.randint(-2, 3, (200, 3)).float()
    distances = (vectors[:, None] - codes[None]).square().sum(2)
    assert nearest_code(vectors, codes).equal(distances.argmin(1))
