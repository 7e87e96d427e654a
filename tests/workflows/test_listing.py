"""What `visae kinds` prints."""

import pytest

from visae.sae import ABOUT, KINDS, kinds
from visae.workflows import listing


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_is_printed_with_its_status_and_why_to_think_twice(kind):
    (block,) = (part for part in str(listing.kinds()).split("\n\n") if part.startswith(f"{kind}  ("))
    head, formula, *rest = block.splitlines()
    about = ABOUT[kind]
    assert head == f"{kind}  ({about.paper}), {'experimental' if about.experimental else 'stable'}"
    assert formula.strip() == about.formula
    assert ([f"Mind: {about.experimental}"] if about.experimental else []) == [line.strip() for line in rest[:-1]]
    assert rest[-1].startswith("    options: ")


def test_negative_results_of_our_own_and_other_names_are_told():
    text = str(listing.kinds())
    for told in ("FVU 0.145 where topk leaves 0.129", "FVU 0.146 at 16 codes where topk leaves 0.130", "mutual choice"):
        assert told in text


def test_a_kind_that_another_package_registers_without_a_description_is_not_called_stable():
    KINDS.register("foreign")(lambda d, n_latents: d + n_latents)
    try:
        assert "foreign  (another package), experimental" in str(listing.kinds())
    finally:
        del KINDS._things["foreign"]
