import numpy as np
import pytest

from visae.codes import CodeTable, columns
from visae.registry import UnknownName
from visae.tokens import KINDS


@pytest.fixture(params=[False, True], ids=["unsigned", "signed"])
def built(request, fakes, tmp_path):
    source = fakes.hand_made(signed=request.param)
    table = CodeTable.build(fakes.Sae(7, signed=request.param), source, tmp_path / "codes", progress=False)
    return table, source.dense


def test_every_latent_has_the_rows_and_values_of_the_dense_codes(built):
    table, dense = built
    flat = dense.reshape(-1, 7)
    for j in range(7):
        rows, values = table.latent(j)
        np.testing.assert_array_equal(rows, np.flatnonzero(flat[:, j]))
        np.testing.assert_array_equal(values, flat[rows, j])
    np.testing.assert_allclose(table.density, (flat != 0).mean(0))
    np.testing.assert_allclose(table.density_of("cls"), (dense[:, 0] != 0).mean(0))
    np.testing.assert_array_equal(table.alive, [0, 1, 2, 3, 4, 6])
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(table.mean_active, flat.sum(0) / (flat != 0).sum(0))


def test_item_maxima_are_over_patches_and_keep_the_two_signs_apart(built):
    table, dense = built
    for sign in (1, -1) if table.signed else (1,):
        largest = (dense[:, 1:] * sign).clip(0).max(1)
        for j in range(7):
            items, values = table.item_max(j, sign)
            np.testing.assert_array_equal(items, np.flatnonzero(largest[:, j]))
            np.testing.assert_array_equal(values * sign, largest[items, j])


def test_top_items_come_strongest_first_and_point_to_the_token_with_that_value(built):
    table, dense = built
    for sign in (1, -1) if table.signed else (1,):
        top = table.top(2, 5, sign)
        largest = (dense[:, 1:, 2] * sign).clip(0).max(1)
        np.testing.assert_array_equal(top.items, np.argsort(-largest, kind="stable")[:5])
        np.testing.assert_array_equal(top.values * sign, largest[top.items])
        np.testing.assert_array_equal(dense[top.items, 1 + top.y * 4 + top.x, 2], top.values)


def test_grid_is_the_dense_code_on_the_token_grid(built):
    table, dense = built
    np.testing.assert_array_equal(table.grid(4, 3), dense[4, 1:, 3].reshape(3, 4))
    np.testing.assert_array_equal(table.grids(4, [3, 0]), dense[4, 1:, [3, 0]].reshape(2, 3, 4))
    assert not table.grid(4, 6).any()  # it fires on class tokens only


def test_strongest_latents_of_an_item_weigh_values_by_the_length_of_their_directions(built):
    table, dense = built
    latents, values = table.strongest(4, 3)
    largest = np.abs(dense[4, 1:]).max(0) * np.arange(1, 8)
    np.testing.assert_allclose(np.abs(values) * (latents + 1), np.sort(largest)[::-1][:3])


def test_histograms_count_the_non_zero_values_between_zero_and_the_extremes(built):
    table, dense = built
    for j in range(7):
        counts, edges = table.histogram(j)
        values = dense[..., j][dense[..., j] != 0]
        if len(values):
            np.testing.assert_array_equal(counts, np.histogram(values, edges)[0])
        assert counts.sum() == len(values)
        assert edges[0] == min(0, values.min(initial=0))
        assert edges[-1] == values.max(initial=0)


def test_class_statistics_equal_those_of_the_dense_codes(built, fakes):
    table, dense = built
    labels = fakes.hand_made(signed=table.signed).item_labels
    for j in range(7):
        found = table.class_statistics(j, "shape")
        for v, value in enumerate(found.values):
            patches = dense[[value in known["shape"] for known in labels], 1:, j].clip(0)
            assert found.count[v] == len(patches)
            assert found.active[v] == (patches.max(1) > 0).sum()
            assert found.rate[v] == pytest.approx((patches.max(1) > 0).mean())
            assert found.mean[v] == pytest.approx(patches.max(1).mean())
            assert found.token_mean[v] == pytest.approx(patches.mean(), rel=1e-6)


def test_a_table_built_in_tiny_blocks_is_the_same_as_one_built_at_once(fakes, tmp_path, monkeypatch):
    CodeTable.build(fakes.Sae(7, signed=True), fakes.hand_made(signed=True), tmp_path / "whole", progress=False)
    monkeypatch.setattr(columns, "BLOCK", 5)
    CodeTable.build(fakes.Sae(7, signed=True), fakes.hand_made(signed=True), tmp_path / "blocks", progress=False)
    assert (tmp_path / "whole/codes.json").read_text() == (
        tmp_path / "blocks/codes.json"
    ).read_text()  # checksums inside


def test_tokens_without_patches_are_pooled_over_what_there_is_and_have_no_grid(fakes, tmp_path):
    source = fakes.hand_made()
    source.dense = source.dense[:, :1]
    source.n_rows = len(source.dense)
    source.meta["geometry"] = None
    table = CodeTable.build(fakes.Sae(7), source, tmp_path / "codes", progress=False)
    assert table.pooled_kinds == ("cls",)
    np.testing.assert_array_equal(table.item_max(6)[0], np.flatnonzero(source.dense[:, 0, 6]))
    with pytest.raises(ValueError, match="no grid"):
        table.grid(0, 0)


def test_a_source_whose_codes_are_all_zero_makes_a_table_of_dead_latents(fakes, tmp_path):
    source = fakes.hand_made()
    source.dense = source.dense * 0
    table = CodeTable.build(fakes.Sae(7), source, tmp_path / "codes", progress=False)
    assert len(table.alive) == 0
    assert len(table.top(0).items) == 0
    assert not table.grid(0, 0).any()


def test_an_interrupted_build_leaves_no_table_and_can_be_repeated(fakes, tmp_path):
    source = fakes.hand_made()
    whole = list(source.chunks())

    def broken():
        yield whole[0]
        raise RuntimeError("power cut")

    source.chunks = broken
    with pytest.raises(RuntimeError, match="power cut"):
        CodeTable.build(fakes.Sae(7), source, tmp_path / "codes", progress=False)
    with pytest.raises(FileNotFoundError, match="no code table"):
        CodeTable.load(tmp_path / "codes")
    assert CodeTable.build(fakes.Sae(7), fakes.hand_made(), tmp_path / "codes", progress=False).n_items == 11


def test_a_changed_or_cut_file_is_named(built):
    table, _ = built
    path = next(table.folder.glob("latent_value.*.bin"))
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"latent_value.*sha256"):
        CodeTable.load(table.folder).verify()
    path.write_bytes(data[:-4])
    with pytest.raises(ValueError, match=r"latent_value.*cut off"):
        CodeTable.load(table.folder).latent(0)


def test_wrong_questions_are_answered_with_what_is_known(built):
    table, _ = built
    with pytest.raises(IndexError, match="latent 7 of a dictionary of 7"):
        table.latent(7)
    with pytest.raises(IndexError, match="item 11 of a table of 11"):
        table.grid(11, 0)
    with pytest.raises(UnknownName, match="Did you mean 'shape'"):
        table.class_statistics(0, "shapes")
    if not table.signed:
        with pytest.raises(ValueError, match="unsigned"):
            table.item_max(0, -1)
    with pytest.raises(FileExistsError, match="exists"):
        CodeTable.build(None, None, table.folder)


def test_items_out_of_order_are_refused(fakes, tmp_path):
    source = fakes.hand_made()
    backwards = list(source.chunks())[::-1]
    source.chunks = lambda: backwards
    with pytest.raises(ValueError, match="ascending order"):
        CodeTable.build(fakes.Sae(7), source, tmp_path / "codes", progress=False)


def test_only_the_wanted_kinds_are_pooled(fakes, tmp_path):
    source = fakes.hand_made()
    table = CodeTable.build(fakes.Sae(7), source, tmp_path / "codes", kinds=("cls", "patch"), progress=False)
    np.testing.assert_array_equal(table.item_max(6)[0], np.flatnonzero(source.dense[..., 6].max(1)))
    assert KINDS[int(table.array("kind")[0])] == "cls"
