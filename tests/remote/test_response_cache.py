"""What was paid for is on the disk, whole, whoever else writes there."""

import threading

import pytest

from svlm_jax.errors import InputError
from svlm_jax.remote.response_cache import ResponseCache, canonical


def test_the_same_request_has_one_form_whatever_the_order_of_its_keys():
    first, second = {"model": "m", "messages": [{"role": "user", "content": "é"}]}, {}
    second["messages"], second["model"] = [{"content": "é", "role": "user"}], "m"
    assert canonical(first) == canonical(second)
    assert canonical(first) != canonical({**first, "temperature": 0})
    assert canonical({"half of a character": "\ud83d"}) == b'{"half of a character":"?"}'


def test_an_entry_is_whole_whenever_it_is_read_and_leaves_nothing_beside_it(tmp_path):
    request, response = canonical({"model": "m"}), "x" * 100_000
    caches = [ResponseCache(tmp_path / "cache") for _ in range(3)]  # as of three processes

    def write(cache: ResponseCache) -> None:
        for _ in range(30):
            cache.write(request, {}, response)

    writers = [threading.Thread(target=write, args=(cache,)) for cache in caches]
    assert caches[0].read(request) is None
    caches[0].write(request, {}, response)
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert (caches[0].read(request) or {}).get("response") == response
    assert [path.name for path in (tmp_path / "cache").rglob("*.*")] == [caches[0].path(request).name]


def test_a_file_in_the_place_of_the_folder_is_refused_before_anything_is_asked(tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(InputError, match="--cache: got a file"):
        ResponseCache(tmp_path / "cache")
