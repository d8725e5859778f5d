"""What a viewer is shown of the KV cache adds up to what the stream retains and evicts."""

from svlm_jax.config import StreamConfig
from svlm_jax.spans import Kind, Part, Span, total, vision_span
from svlm_jax.stream.cache_view import CacheRun, cache_runs, evicted_runs

SPANS = (
    Span(Kind.SYSTEM, 9),
    Span(Kind.PREVIOUS, 3, part=Part.HEAD),
    Span(Kind.PREVIOUS, 20),
    Span(Kind.PREVIOUS, 2, part=Part.TAIL),
    Span(Kind.USER_TEXT, 3, 4, part=Part.HEAD),
    Span(Kind.USER_TEXT, 5, 4),
    Span(Kind.VISION, 1, 4, part=Part.HEAD),
    vision_span((1, 4, 6), turn=4),
    Span(Kind.VISION, 1, 4, part=Part.TAIL),
    Span(Kind.REPLY, 4, 4),
)


def test_runs_add_up_and_the_previous_text_is_split_where_its_sink_ends():
    runs = cache_runs(SPANS, StreamConfig(sink=6, text_window=13))
    assert sum(run.length for run in runs) == total(SPANS)
    assert runs[:3] == [CacheRun("system", 9, 0), CacheRun("sink", 9, 0), CacheRun("window", 16, 0)]
    assert runs[3:] == [CacheRun("user", 8, 4), CacheRun("vision", 8, 4), CacheRun("reply", 4, 4)]


def test_evicted_previous_text_is_of_its_window():
    assert evicted_runs([SPANS[2]._replace(length=5), *SPANS[6:9]]) == [CacheRun("window", 5, 0), CacheRun("vision", 8, 4)]
    assert evicted_runs([]) == []
