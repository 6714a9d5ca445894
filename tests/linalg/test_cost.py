"""The cheapest order is chosen."""

from oialr_peft.linalg.cost import cheapest_order, forward_multiplications, multiplications


def test_a_small_rank_goes_by_autograds_chain_and_a_larger_one_is_folded():
    assert cheapest_order(3072, 512, 25, 512) == "chain"
    assert cheapest_order(16, 512, 128, 512) == "chain"
    assert cheapest_order(3072, 512, 128, 512) == "folded"


def test_rebuilding_is_for_high_rank_and_a_quarter_dearer_than_a_dense_layer():
    assert cheapest_order(3072, 512, 512, 512) == "rebuild"
    assert cheapest_order(3072, 512, 256, 512) == "folded"
    assert cheapest_order(3072, 512, 512, 2048) == "folded"
    assert multiplications(3072, 512, 512, 512)["rebuild"] < 1.25 * 3 * 3072 * 512 * 512


def test_forward_multiplications_fall_with_the_rank():
    assert forward_multiplications(512, 128, 2048) == 128 * (512 + 2048)
    assert forward_multiplications(512, 512, 512) == 512 * 512
