"""The saved outputs, where nbval does not look: they are of one run, without a complaint.

That both notebooks have the same is the concern of test_translation.py, and that all plots are there of test_site.py.
"""
from cells import code_cells, read


def test_one_run():
    """Counts are those of a fresh kernel that ran every cell once, in order."""
    code = code_cells(read())
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run python tools/save.py --run"
    for cell in code:
        assert {output.execution_count for output in cell.outputs if "execution_count" in output} <= {
            cell.execution_count}


def test_no_complaints():
    """No error and nothing on stderr."""
    assert [cell.id for cell in code_cells(read()) for output in cell.outputs
            if output.output_type == "error" or output.get("name") == "stderr"] == []
