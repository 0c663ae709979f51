"""The documentation shows what the rank tests found, for the cases that there are."""

from tests import matrix


def test_the_documented_matrix_has_every_case_and_all_have_passed():
    cases = {
        (ranks, layout, kind): "passed"
        for ranks, (_, layouts) in matrix.CASES.items()
        for layout in layouts
        for kind in matrix.KINDS
    }
    assert matrix.written() == matrix.table(cases)


def test_a_failure_and_a_case_that_was_not_run_are_shown_as_such(tmp_path):
    report = tmp_path / "report.xml"
    test = matrix.CASES[2][0]
    report.write_text(
        f'<testsuite><testcase name="{test}[ddp-full]"><failure/></testcase>'
        f'<testcase name="{test}[cp-lora]"/></testsuite>'
    )
    found = matrix.results(report)
    assert found[2, "ddp", "full"] == "failed"
    assert found[2, "cp", "lora"] == "passed"
    assert found[4, "fsdp2", "full"] == "absent"
    row = next(line for line in matrix.table(found).splitlines() if line.startswith("| ddp | 2"))
    assert row.startswith("| ddp | 2 | ✗ | ?")
