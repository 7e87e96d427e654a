import pytest

from visae.codes.bench import bench_codes


def test_every_question_about_a_latent_takes_less_than_a_tenth_of_a_second():
    """At a tenth of the million tokens that `python -m visae.codes.bench` takes, so that the test is quick."""
    found = bench_codes(n_rows=100_000, n_latents=1024, k=16, side=14, repeats=10)
    assert found["n_rows"] == 99_960
    assert found["nnz"] > 1_500_000
    assert set(found["milliseconds"]) == {"top", "density", "histogram", "class_statistics", "latent", "grid"}
    for question, times in found["milliseconds"].items():
        assert times["median"] < 100, (question, times)


def test_the_synthetic_table_has_the_size_it_says():
    found = bench_codes(n_rows=900, n_latents=50, k=4, side=3, repeats=3)
    assert found["nnz"] == pytest.approx(900 * 4, rel=0.1)
    assert found["bytes"] > 12 * found["nnz"]
