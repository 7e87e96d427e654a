"""What kinds are for, on planted worlds that have it; and what they cost."""

import pytest
import torch
from torch.nn.functional import normalize

from visae.evaluate import evaluate_sae, stability
from visae.sae import make_sae
from visae.train import Planted, PlantedConfig, TrainConfig, Trainer, absorption, recovery

EVEN = PlantedConfig(d=32, n_features=64, active=4)
UNEVEN = PlantedConfig(d=32, n_features=64, active=(1, 12))
FAMILIES = PlantedConfig(d=32, n_features=64, active=2, children=3, spread=0.3)


class Signed(Planted):
    """Half of the codes are negative."""

    def sample(self, n, index=0):
        x, codes = super().sample(n, index)
        turned = codes * (2 * torch.randint(0, 2, codes.shape, generator=self._generator(index, 3)) - 1)
        return x + (turned - codes) @ self.features, turned


def train(kind, world, steps, n_latents=128, seed=0, **options):
    """The dictionary, its last metrics and held-out tokens."""
    loader, held_out = world if isinstance(world, tuple) else (Planted(world, 512), Planted(world, 512, part=1))
    x = held_out.sample(8192)[0]
    config = TrainConfig(
        steps=steps, batch=512, stat_rows=4096, device="cpu", calibration_rows=8192, log_every=steps, seed=seed
    )
    sae = make_sae(kind, x.shape[1], n_latents, **options)
    return sae, Trainer(sae, config, progress=False).fit(loader, [x]).metrics, x


@pytest.mark.parametrize(
    ("kind", "options"),
    [("gated", {"l1": 0.7}), ("relu_l1", {"l1": 0.2, "penalty": "tanh"}), ("p_anneal", {"l1": 0.15})],
    ids=["gated", "tanh", "p_anneal"],
)
def test_penalties_other_than_l1_recover_the_planted_features_with_fewer_codes(kind, options):
    sae, metrics, _ = train(kind, EVEN, 200, **options)
    found = recovery(sae, Planted(EVEN).features)
    assert found["mmcs"] >= 0.98
    assert metrics["val_l0"] < 6  # L1 leaves ten at this coefficient


def test_a_signed_code_serves_both_ends_of_an_axis_and_unsigned_ones_take_two_latents():
    world = (Signed(EVEN, 512), Signed(EVEN, 512, part=1))
    fvu = {kind: train(kind, world, 120, n_latents=64, k=4)[1]["val_fvu"] for kind in ("topk", "abs_topk")}
    assert fvu["abs_topk"] < 0.75 * fvu["topk"]
    split = {}
    for kind in ("topk", "abs_topk"):
        sae = train(kind, world, 120, k=4)[0]
        cosines = world[0].features @ normalize(sae.directions().detach(), dim=1).T
        split[kind] = float(((cosines.amax(1) > 0.9) & (cosines.amin(1) < -0.9)).double().mean())
    assert split["topk"] > 0.5
    assert split["abs_topk"] < 0.1


@torch.no_grad()
def truncated(sae, x, k):
    """FVU with the k largest codes of a token."""
    codes = sae.encode(x)
    values, at = codes.values.topk(k, dim=1)
    kept = codes.with_values(torch.zeros_like(codes.values).scatter(1, at, values))
    return float((x - sae.decode(kept)).square().sum() / (x - x.mean(0)).square().sum())


def test_one_dictionary_for_all_k_beats_a_cut_one_at_every_smaller_k_but_not_one_made_for_that_k():
    nested, _, x = train("hierarchical_topk", EVEN, 120, k=8)
    plain, _, _ = train("topk", EVEN, 120, k=8)
    assert all(truncated(nested, x, k) < truncated(plain, x, k) for k in (1, 2, 3, 4))
    assert truncated(nested, x, 8) > truncated(plain, x, 8)
    own = {k: train("topk", EVEN, 120, k=k)[1]["val_fvu"] for k in (2, 4)}
    assert all(truncated(nested, x, k) > 0.99 * fvu for k, fvu in own.items())


def test_with_few_codes_prefixes_keep_parents_and_each_longer_one_explains_more():
    absorbed = {"batch_topk": 0.0, "matryoshka": 0.0}
    for seed in range(3):
        for kind in absorbed:
            sae, _, x = train(kind, FAMILIES, 80, k=2, seed=seed)
            absorbed[kind] += absorption(sae, Planted(FAMILIES, part=2)) / 3
    assert absorbed["matryoshka"] <= 0.7 * absorbed["batch_topk"]
    u, codes = sae.normalise(x), sae.encode(x).to_dense()
    fvu = [float((codes[:, :m] @ sae.W_dec[:m] + sae.b_dec - u).detach().square().mean()) for m in sae.scheme.ends]
    assert fvu == sorted(fvu, reverse=True)
    assert fvu[0] < 0.9


def test_where_latents_choose_none_is_dead_and_uneven_tokens_get_what_they_need():
    metrics = {kind: train(kind, UNEVEN, 120, n_latents=64, k=6)[1] for kind in ("topk", "feature_choice")}
    assert metrics["feature_choice"]["dead"] == 0
    assert metrics["feature_choice"]["val_fvu"] <= 0.85 * metrics["topk"]["val_fvu"]


def test_two_seeds_of_atoms_near_data_agree_more_than_free_ones_on_images(shuffled):
    from visae import load_data, load_model
    from visae.store import Stream

    stream = Stream(load_model("visae:tiny-clip"), "blocks.3", load_data("world:train?n=100&objects=1"), workers=0)
    rows = torch.cat([chunk.rows for chunk in stream.chunks()]).float()
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    world, shared, fvu = (shuffled(rows[1000:], 512), shuffled(rows[:1000], 512)), {}, {}
    for kind, options in (("topk", {}), ("archetypal", {"points": 512})):
        pair = [train(kind, world, 100, seed=seed, k=8, **options) for seed in (0, 1)]
        fvu[kind] = pair[0][1]["val_fvu"]
        density = [evaluate_sae(sae, [x]).density for sae, _, x in pair]
        found = stability(*(sae for sae, _, _ in pair), density)
        shared[kind] = (found.shared, found.shared_alive)
    assert shared["archetypal"][0] > shared["topk"][0] + 0.05  # all latents
    assert shared["archetypal"][1] > shared["topk"][1] + 0.05  # alive ones
    assert fvu["archetypal"] < 1.4 * fvu["topk"]
