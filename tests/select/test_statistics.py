"""Statistics of prompts: what plain codes of an extracted store give, at any noise level, never collected twice."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import visae
from visae.clock import CODES
from visae.data import Sample, load_prompts
from visae.data.images import UnreadableImage
from visae.registry import UnknownName
from visae.sae import initialise, make_sae
from visae.select import PromptStatistics, collect_statistics, collecting, select_concept
from visae.select.statistics import TABLES
from visae.store import Sampling, Store, Stream, extract
from visae.store.probing import collection

SITE, TEXT = "unet.mid_block.attentions.0", "text_encoder.encoder.layers.1"
TEXTS = ["a red square", "a star on grey", "a green circle", "blue"]
RUN = Sampling(steps=3, branch="both")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")


@pytest.fixture(scope="module")
def sd(tiny_pipelines):
    return visae.wrap(tiny_pipelines.build("sd"), name="sd", image_size=(16, 24))


@pytest.fixture(scope="module")
def store(sd, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    extract(sd, SITE, load_prompts(TEXTS), folder, dtype="float32", batch=2, sampling=RUN, progress=False)
    return Store(folder)


def dictionary(rows, kind="topk", **options):
    sae = make_sae(kind, rows.shape[1], 24, **options)
    initialise(sae, rows)
    return sae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def rows(store):
    return torch.cat([chunk.rows for chunk in store.chunks()]).float()


@pytest.fixture(scope="module")
def sae(rows):
    return dictionary(rows, k=3)


def dense(sae, store, prompt, step):
    """Codes `[T, columns]` of a prompt's conditional tokens at a step, through the store and `to_dense` alone."""
    chunk = next(iter(store.chunks()))
    mine = (chunk.item == prompt) & (chunk.step == step) & (chunk.branch == CODES["cond"])
    side = {"sigma": chunk.sigma[mine]} if sae.needs_to_encode else {}
    codes = sae.encode(chunk.rows[mine], **side).to_dense()
    return torch.cat([codes.clamp(min=0), (-codes).clamp(min=0)], dim=1) if sae.signed else codes


def assert_equals_dense(found, sae, store):
    assert len(found) == 4
    assert len(found.levels) == 3
    for p in range(4):
        for s in range(3):
            codes = dense(sae, store, p, s)
            expected = {
                "mean": codes.mean(0),
                "rms": codes.square().mean(0).sqrt(),
                "largest": codes.amax(0),
                "fired": (codes > 0).float().mean(0),
            }
            for name in TABLES:
                table = getattr(found, name)
                assert table.dtype == torch.float16
                torch.testing.assert_close(table[p, s].float(), expected[name], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(("kind", "options"), [("topk", {"k": 3}), ("abs_topk", {"k": 3}), ("temporal", {"k": 3})])
def test_tables_are_those_of_dense_codes_of_the_conditional_tokens_of_a_store(kind, options, sd, store, rows, bring):
    sae = make_sae(kind, rows.shape[1], 24, **options)
    initialise(sae, bring(sae, rows))
    sae.eval().requires_grad_(False)
    found = collect_statistics(sd, sae, SITE, RUN, load_prompts(TEXTS), batch=3, progress=False)
    assert_equals_dense(found, sae, store)
    assert found.columns == (48 if sae.signed else 24)
    assert [one.text for one in found.prompts] == TEXTS
    levels = store.meta.collected
    assert found.levels == tuple(slot.sigma for slot in levels.slots if slot.branch == CODES["cond"])


def test_what_a_card_says_of_a_run_collects_the_same_as_what_was_asked(sd, store, sae):
    known = collection(sd, sd.site(SITE), RUN)
    assert_equals_dense(collect_statistics(sd, sae, SITE, known, TEXTS, progress=False), sae, store)


def generations(sd, monkeypatch):
    made = []
    real = type(sd).generate
    monkeypatch.setattr(
        type(sd), "generate", lambda self, prompts, *a, **k: made.append(prompts) or real(self, prompts, *a, **k)
    )
    return made


def test_prompts_that_lie_in_the_folder_are_not_run_again(sd, store, sae, tmp_path, monkeypatch):
    known = collection(sd, sd.site(SITE), RUN)
    data = load_prompts(TEXTS)
    collect_statistics(sd, sae, SITE, known, load_prompts(TEXTS[:3]), tmp_path, progress=False)
    made = generations(sd, monkeypatch)
    whole = collect_statistics(sd, sae, SITE, known, data, tmp_path, batch=8, progress=False)
    assert made == [[TEXTS[3]]]
    assert_equals_dense(whole, sae, store)
    again = collect_statistics(sd, sae, SITE, known, [TEXTS[0], *TEXTS[1:3], TEXTS[3]], tmp_path, progress=False)
    assert len(made) == 1
    assert torch.equal(again.mean, whole.mean)
    other = dictionary(torch.randn(64, sae.d, generator=torch.Generator().manual_seed(5)), k=3)
    collect_statistics(sd, other, SITE, known, TEXTS[:1], tmp_path, progress=False)
    assert made[1:] == [[TEXTS[0]]]


def test_a_collection_that_was_stopped_goes_on_where_it_was(sd, store, sae, tmp_path, monkeypatch):
    known = collection(sd, sd.site(SITE), RUN)
    monkeypatch.setattr(collecting, "PART_PROMPTS", 1)
    made = generations(sd, monkeypatch)
    reduce = collecting._reduced

    def stops(*given):
        if len(made) == 3:
            raise KeyboardInterrupt
        return reduce(*given)

    monkeypatch.setattr(collecting, "_reduced", stops)
    with pytest.raises(KeyboardInterrupt):
        collect_statistics(sd, sae, SITE, known, TEXTS, tmp_path, progress=False)
    monkeypatch.setattr(collecting, "_reduced", reduce)
    made.clear()
    assert_equals_dense(collect_statistics(sd, sae, SITE, known, TEXTS, tmp_path, progress=False), sae, store)
    assert made == [[TEXTS[2]], [TEXTS[3]]]


def test_of_text_encoders_the_first_token_and_the_padding_are_left_out(sd, tmp_path):
    texts = ["a star", "a red square on a star"]
    folder = tmp_path / "store"
    extract(sd, TEXT, load_prompts(texts), folder, dtype="float32", sampling=Sampling("text"), progress=False)
    chunk = next(iter(Store(folder).chunks()))
    sae = dictionary(chunk.rows, k=3)
    codes = sae.encode(chunk.rows).to_dense().reshape(2, -1, 24)
    found = collect_statistics(sd, sae, TEXT, Sampling("text"), texts, progress=False)
    assert math.isnan(found.levels[0])
    for p, text in enumerate(texts):
        mine = codes[p, 1 : len(text.split()) + 2]  # the words, known whole, and the token that ends them
        torch.testing.assert_close(found.mean[p, 0].float(), mine.mean(0), rtol=2e-3, atol=1e-4)
        torch.testing.assert_close(found.largest[p, 0].float(), mine.amax(0), rtol=2e-3, atol=1e-4)
    whole = collect_statistics(sd, sae, TEXT, Sampling("text"), texts, words=False, progress=False)
    torch.testing.assert_close(whole.mean[:, 0].float(), codes.mean(1), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["pixart-alpha", "sana"])
def test_padding_of_other_tokenizers_is_left_out_too(name, tiny_pipelines):
    row = tiny_pipelines.PIPELINES[name]
    model = visae.wrap(tiny_pipelines.build(name), name=name, image_size=row.size, **row.options)
    site = next(s for s in model.sites().values() if s.path.startswith("text_encoder.") and s.kind == "output")
    sae = dictionary(torch.randn(64, site.d, generator=torch.Generator().manual_seed(0)), k=3)
    seen = []
    handle = model.pipe.text_encoder.register_forward_pre_hook(
        lambda _m, _args, kw: seen.append(kw["attention_mask"].clone()), with_kwargs=True
    )
    found = collect_statistics(model, sae, site, Sampling("text"), ["a star", "a red square on grey"], progress=False)
    handle.remove()
    least = found.fired[:, 0].float().masked_fill(found.fired[:, 0] == 0, torch.inf).amin(1)
    assert (1 / least).round().tolist() == seen[-1].sum(1).tolist()  # some latent fires in one token of each


def test_prompts_that_stand_behind_their_padding_are_found():
    def kept(ids, **special):
        tokens = {"eos_token_id": None, "pad_token_id": None, "bos_token_id": None, **special}
        pipe = SimpleNamespace(tokenizer_2=SimpleNamespace(**tokens))
        stream = SimpleNamespace(site=SimpleNamespace(path="text_encoder_2.layers.1"), model=SimpleNamespace(pipe=pipe))
        return collecting.content_tokens(torch.tensor([ids]), stream)[0].int().tolist()

    assert kept([0, 0, 2, 5, 6], pad_token_id=0, bos_token_id=2, eos_token_id=1) == [0, 0, 0, 1, 1]
    assert kept([5, 6, 1, 0, 0], pad_token_id=0, eos_token_id=1) == [1, 1, 1, 0, 0]
    assert kept([2, 5, 1, 1, 1], pad_token_id=1, bos_token_id=2, eos_token_id=1) == [0, 1, 1, 0, 0]
    assert kept([0, 0], pad_token_id=0) == [1, 1]
    assert kept([5, 6]) == [1, 1]


class Pictures:
    """Grey images with captions and a label; the second cannot be read."""

    name, fingerprint, factors = "greys", "greys", {"shade": ["dark", "light"]}

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 1:
            raise UnreadableImage("grey/1", "torn")
        image = Image.new("RGB", (24, 16), (60 + 40 * index,) * 3)
        return Sample(image, f"grey/{index}", {"shade": (("dark", "light")[index > 1],)}, captions=(TEXTS[index],))


def test_images_with_noise_added_are_asked_like_prompts_and_kept_likewise(sd, tmp_path, monkeypatch):
    run = Sampling("noise", steps=6, collect=(0, 4))
    stream = Stream(sd, SITE, Pictures(), dtype="float32", workers=0, sampling=run)
    rows = torch.cat([chunk.rows for chunk in stream.chunks()])
    sae = dictionary(rows, k=3)
    found = collect_statistics(sd, sae, SITE, run, Pictures(), tmp_path, progress=False)
    codes = sae.encode(rows).to_dense().reshape(3, 2, -1, 24)
    torch.testing.assert_close(found.mean.float(), codes.mean(2), rtol=2e-3, atol=1e-4)
    assert [one.key for one in found.prompts] == ["grey/0", "grey/2", "grey/3"]
    target, retain = found.split("shade", "light")
    assert [len(target), len(retain)] == [2, 1]
    monkeypatch.setattr(collecting, "_reduced", None)
    assert torch.equal(collect_statistics(sd, sae, SITE, run, Pictures(), tmp_path, progress=False).mean, found.mean)


def test_a_label_of_a_set_of_images_is_selected_in_a_model_that_sees_them(tmp_path):
    model = visae.load_model("visae:tiny-clip")
    rows = next(iter(Stream(model, "blocks.1", Pictures(), dtype="float32").chunks())).rows
    sae = dictionary(rows, k=3)
    found = collect_statistics(model, sae, "blocks.1", None, Pictures(), tmp_path, progress=False)
    codes = sae.encode(rows).to_dense().reshape(3, -1, 24)
    torch.testing.assert_close(found.largest[:, 0].float(), codes.amax(1), rtol=2e-3, atol=1e-4)
    chosen = select_concept(*found.split("shade", "dark"), score="auroc", top_m=1, concept="shade=dark")
    assert chosen.site == "blocks.1"
    assert chosen.scores == (1.0,)


def test_tables_at_other_noise_levels_are_interpolated_in_log_sigma(statistics_of):
    codes = np.zeros((2, 3, 1, 2))
    codes[..., 0] = np.array([1.0, 3.0, 5.0])[:, None]  # at sigma 16, 4 and 1
    known = statistics_of(codes, levels=(16.0, 4.0, 1.0))
    found = known.at([64.0, 16.0, 8.0, 2.0, 1.0, 0.0])
    assert found.levels == (64.0, 16.0, 8.0, 2.0, 1.0, 0.0)
    torch.testing.assert_close(found.mean[0, :, 0], torch.tensor([1.0, 1, 2, 4, 5, 5]))
    torch.testing.assert_close(found.rms[0, :, 0], found.mean[0, :, 0])
    assert torch.equal(known.at(known.levels).mean, known.mean)
    timeless = statistics_of(codes[:, :1], levels=(math.nan,))
    assert torch.equal(timeless.at([3.0, 0.1]).mean, timeless.mean.expand(2, 2, 2))


def test_pooling_takes_every_level_alike_and_the_largest_of_all(statistics_of):
    rng = np.random.default_rng(0)
    codes = rng.random((3, 4, 5, 6)) * (rng.random((3, 4, 5, 6)) < 0.5)
    pooled, flat = statistics_of(codes).pooled(), statistics_of(codes.reshape(3, 1, 20, 6))
    assert math.isnan(pooled.levels[0])
    for name in TABLES:
        torch.testing.assert_close(getattr(pooled, name), getattr(flat, name))


def test_labels_part_prompts_with_a_value_from_those_with_another(statistics_of):
    codes = np.arange(4.0)[:, None, None, None] * np.ones((4, 1, 1, 2))
    whole = statistics_of(codes, shape=["star", "circle", "star", "square"])
    target, retain = whole.split("shape", "star")
    assert target.mean[:, 0, 0].tolist() == [0, 2]
    assert retain.mean[:, 0, 0].tolist() == [1, 3]
    with pytest.raises(UnknownName, match="circle"):
        whole.split("shape", "cirkle")
    with pytest.raises(UnknownName, match="shape"):
        whole.split("shap", "star")
    with pytest.raises(ValueError, match="every prompt with a shape asks for star"):
        target.split("shape", "star")


def test_statistics_survive_the_disk_labels_and_missing_levels_included(statistics_of, tmp_path):
    found = statistics_of(np.random.default_rng(0).random((3, 1, 2, 4)), levels=(math.nan,), shape=["a", "b", "c"])
    found.save(tmp_path / "statistics.json")
    again = PromptStatistics.load(tmp_path / "statistics.json")
    assert again.prompts == found.prompts
    assert math.isnan(again.levels[0])
    assert all(torch.equal(getattr(again, name), getattr(found, name)) for name in TABLES)
    assert again.fingerprint == found.fingerprint
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="no prompt statistics"):
        PromptStatistics.load(tmp_path / "other.json")
    with pytest.raises(ValueError, match="cannot be joined"):
        PromptStatistics.cat([found, statistics_of(np.ones((1, 1, 2, 4)), levels=(2.0,))])


def test_codes_too_large_for_float16_are_kept_as_they_are(sd, sae, monkeypatch):
    reduce = collecting._reduced
    monkeypatch.setattr(collecting, "_reduced", lambda *a: {k: t * 1e7 for k, t in reduce(*a).items()})
    found = collect_statistics(sd, sae, SITE, Sampling(steps=2, collect=(0,)), TEXTS[:1], progress=False)
    assert found.largest.dtype == torch.float32
    assert found.largest.isfinite().all()


def test_a_selection_knows_the_dictionary_the_site_and_the_levels_it_was_chosen_at(sd, sae, tmp_path):
    both = [collect_statistics(sd, sae, SITE, RUN, texts, tmp_path, progress=False) for texts in (TEXTS[:2], TEXTS[2:])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = select_concept(*both, score="auroc", concept="red")
    assert found.site == SITE
    assert found.sae == both[0].identity["sae"]
    assert found.evidence["levels"].tolist() == pytest.approx(list(both[0].levels))
