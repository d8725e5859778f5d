"""What viewers and metrics call the sources of an operator."""

from svlm_jax.cli.source_titles import with_titles


def test_sources_that_differ_only_in_what_is_not_shown_have_titles_of_their_own():
    """The channels of one recorder: else their metrics are added up, and a viewer cannot tell which is which."""
    addresses = [f"rtsp://admin:s3cret@recorder:554/live?channel={number}" for number in (1, 2, 3)]
    pairs = with_titles([*addresses, "0"])
    assert [title for title, _ in pairs] == ["recorder/live", "recorder/live (2)", "recorder/live (3)", "camera 0"]
    assert [source for _, source in pairs] == [*addresses, "0"]
