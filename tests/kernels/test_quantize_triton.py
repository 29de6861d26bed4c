"""fp8 rows: scales and values bit by bit, rounding element by element, what is not finite stays so."""

import pytest
import torch
from agreement import agree, difficult_rows, with_one_scale_wrong

from megatron_jmed.kernels.quantize_triton import Rows, empty_rows, quantize_rows, quantize_rows_reference


@pytest.mark.parametrize("num_rows, width", [(37, 256), (1, 128), (64, 384), (0, 128)])
def test_rows_are_those_of_the_reference_bit_by_bit(device, num_rows, width):
    rows = difficult_rows(num_rows, width, device)
    values, scales = quantize_rows(rows)
    expected_values, expected_scales = quantize_rows_reference(rows)
    assert torch.equal(values.view(torch.uint8), expected_values.view(torch.uint8))
    assert torch.equal(scales, expected_scales)
    if num_rows > 1:
        assert scales.stride() == expected_scales.stride() == (1, num_rows)


def test_rows_are_close_and_one_wrong_scale_is_not(device):
    rows = difficult_rows(37, 256, device)
    found = Rows(None, *quantize_rows(rows))
    assert agree(found, rows.double())
    assert not agree(with_one_scale_wrong(found), rows.double())
    left_out = found.values_RK.clone()
    left_out.view(torch.uint8)[3, 7] = 0x7F
    assert not agree(found._replace(values_RK=left_out), rows.double())


@pytest.mark.parametrize("quantize", [quantize_rows, quantize_rows_reference])
def test_what_is_not_finite_is_seen(device, quantize):
    rows = torch.ones(4, 256, device=device)
    rows[0, 3], rows[1, 200], rows[2, 0] = torch.nan, torch.inf, -torch.inf
    values = quantize(rows)[0].float()
    assert values[0, 3].isnan() and values[1, 200].isnan() and values[2, 0].isnan()
    assert values.isnan().sum() == 3


def test_a_group_of_zeros_has_scale_one_and_tiny_numbers_do_not_divide_by_zero(device):
    rows = torch.zeros(3, 128, device=device)
    rows[1], rows[2] = 1e-38, 1e-45
    values, scales = quantize_rows(rows)
    assert (scales == 1).all() and (values.float() == 0).all()


def test_a_width_without_whole_groups_is_refused():
    with pytest.raises(ValueError, match="whole groups"):
        empty_rows(4, 100, torch.zeros(1), "fp8")
