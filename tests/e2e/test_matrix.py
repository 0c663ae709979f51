"""The documentation shows what the rank tests found, for the cases that there are."""

from tests import matrix
from tests.e2e.test_ranks import refusal


def test_the_documented_matrix_has_every_case_and_all_have_passed_or_are_refused():
    cases = {
        (ranks, layout, kind): "refused" if refusal(matrix.CASES[ranks][1][layout], kind)
        else "passed"
        for ranks, layout, kind in matrix.cells()
    }  # fmt: skip
    assert matrix.written() == matrix.table(cases)


def test_a_failure_and_a_case_that_was_not_run_are_shown_as_such(tmp_path):
    report = tmp_path / "report.xml"
    test = matrix.CASES[2][0]
    report.write_text(
        f'<testsuite><testcase name="{test}_follow_one[ddp-full]"><failure/></testcase>'
        f'<testcase name="{test}_follow_one[cp-lora]"/>'
        f'<testcase name="{test}_are_refused[tp-compile]"/>'
        f'<testcase name="{test}_are_refused[cp-packed]"><failure/></testcase></testsuite>'
    )
    found = matrix.results(report)
    assert found[2, "ddp", "full"] == "failed"
    assert found[2, "cp", "lora"] == "passed"
    assert found[2, "tp", "compile"] == "refused"
    assert found[2, "cp", "packed"] == "failed"
    assert found[4, "fsdp2", "full"] == "absent"
    row = next(line for line in matrix.table(found).splitlines() if line.startswith("| ddp | 2"))
    assert row.startswith("| ddp | 2 | ✗ | ?")
