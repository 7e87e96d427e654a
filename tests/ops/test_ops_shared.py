"""Rules over several processes keep what the plain rule keeps of all rows and latents together."""

import pytest
import torch

from visae.ops import BatchTopK, FeatureChoice, Share, TopK, batch_topk, feature_choice, randn_like, sharing
from visae.ops.shared import ShardedTopK


def to_mask(pattern):
    mask = torch.zeros(pattern.n_rows, pattern.n_latents, dtype=torch.bool)
    mask[pattern.rows, pattern.columns] = True
    assert int(mask.sum()) == pattern.columns.numel()
    assert bool((pattern.columns[1:] > pattern.columns[:-1])[pattern.rows[1:] == pattern.rows[:-1]].all())
    return mask


def numbers(n, width, skewed=False, seed=0):
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    if skewed:  # nearly all that is kept lies on the first process, and on the first latents
        x[: n // 2, : width // 2] += 5
    return x


def rules(k, width, signed):
    return {
        "batch_topk": (BatchTopK(k, signed), lambda: batch_topk(k, signed)),
        "feature_choice": (FeatureChoice(k / width, signed), lambda: feature_choice(k / width, signed)),
    }


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", ["batch_topk", "feature_choice"])
def test_rows_on_several_processes_keep_what_all_rows_keep(played, name, size, skewed, signed):
    pre = numbers(12 * size, 40, skewed)
    plain, make = rules(3.3, 40, signed)[name]

    def job(group):
        with sharing(Share(rows=group, all=group)):
            rule = make()
        own = pre[group.rank * 12 : (group.rank + 1) * 12]
        return rule.mask(own), to_mask(rule.pick(own))

    for masks in zip(*played(size, job), strict=True):
        assert torch.equal(torch.cat(masks), plain.mask(pre))


def test_more_values_are_sent_where_one_process_holds_nearly_all(played, monkeypatch):
    pre = numbers(4000, 64, skewed=True)
    sent = []

    def job(group):
        gather = group.gather
        group.gather = lambda x: sent.append(x.numel()) or gather(x)
        with sharing(Share(rows=group, all=group)):
            return to_mask(batch_topk(3.0).pick(pre[group.rank * 2000 : (group.rank + 1) * 2000]))

    assert torch.equal(torch.cat(played(2, job)), BatchTopK(3.0).mask(pre))
    assert sorted(set(sent)) == [7564, 15128]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("widths", [(20, 20), (30, 10, 0), (2, 38)])
def test_latents_on_several_processes_keep_what_all_latents_keep(played, widths, signed):
    pre = numbers(24, 40, skewed=True)
    plain = TopK(5, signed)

    def job(group):
        rule = ShardedTopK.of(plain, group)
        own = pre.split(widths, dim=1)[group.rank].contiguous()
        return to_mask(rule.pick(own)), rule.mask(own) if len(set(widths)) == 1 else to_mask(rule.pick(own))

    for masks in zip(*played(len(widths), job), strict=True):
        assert torch.equal(torch.cat(masks, 1), plain.mask(pre))


def test_ties_do_not_change_how_many_are_kept(played):
    pre = numbers(24, 40).mul(2).round()  # few distinct values

    def rows(group):
        with sharing(Share(rows=group, all=group)):
            return to_mask(batch_topk(3.0).pick(pre[group.rank * 12 : (group.rank + 1) * 12]))

    def latents(group):
        return to_mask(ShardedTopK(5, group).pick(pre[:, group.rank * 20 : (group.rank + 1) * 20]))

    kept = torch.cat(played(2, rows))
    assert int(kept.sum()) == 72
    assert pre[kept].min() >= pre[~kept].max()
    kept = torch.cat(played(2, latents), 1)
    assert kept.sum(1).tolist() == [5] * 24


def test_fewer_latents_than_codes_are_all_kept(played):
    pre = numbers(6, 8)
    masks = played(2, lambda group: to_mask(ShardedTopK(20, group).pick(pre[:, group.rank * 4 : group.rank * 4 + 4])))
    assert bool(torch.cat(masks, 1).all())


def test_sums_means_and_variances_are_those_of_all_rows(played):
    x = numbers(24, 5).double()

    def job(group):
        own = x[group.rank * 12 : (group.rank + 1) * 12].clone().requires_grad_()
        mean = group.mean(own.mean())
        mean.square().backward()
        rows = group.cat(own[: 3 + 4 * group.rank])
        return group.variance(own), mean.detach(), own.grad / group.size, rows, group.total(group.rank + 1)

    expected = x.clone().requires_grad_()
    expected.mean().square().backward()
    results = played(2, job)
    for variance, mean, _, rows, total in results:
        assert torch.allclose(variance, x.var(0, correction=0))
        assert torch.allclose(mean, x.mean())
        assert torch.equal(rows, torch.cat([x[:3], x[12:19]]))
        assert total == 3
    assert torch.allclose(torch.cat([grad for _, _, grad, _, _ in results]), expected.grad)


def test_noise_is_that_of_all_rows(played):
    torch.manual_seed(3)
    whole = torch.randn(8, 16)

    def job(group):
        with sharing(Share(rows=group, all=group)):
            if group.rank:
                group._barrier.wait(20)
            torch.manual_seed(3)
            noise = randn_like(torch.empty(4, 16))
            if not group.rank:
                group._barrier.wait(20)
            return noise

    assert torch.equal(torch.cat(played(2, job)), whole)
