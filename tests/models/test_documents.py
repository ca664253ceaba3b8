"""The examples that take a second and more run, and print what is shown."""

import pytest

from tests.documents import SLOW, run_examples


@pytest.mark.parametrize("document", sorted(SLOW))
def test_the_examples_of_the_document_run_and_print_what_is_shown(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_examples(document)
