"""What the name of a source means: what is there goes before what it could mean; nothing is opened that would wait for ever."""

import os
import socket
import threading
import unicodedata

import numpy as np
import pytest
from PIL import Image

from svlm_jax.errors import InputError
from svlm_jax.media.paths import masked
from svlm_jax.media.sources import FileSource, FolderSource, open_source
from svlm_jax.media.video import read_video
from tests.media.test_video import refused
from tests.support import HANG
from tests.support.films import RED, film, plain

NAMES = [
    "2024-05-01T10:30:12.mp4",
    "a:b.mp4",
    "rtsp:x.mp4",
    "file:x.mp4",
    "concat:a|b.mp4",
    "data:x.mp4",
    "-x.mp4",
    "half%20time.mp4",
    "frame%03d.mp4",
    "~x.mp4",
    " x.mp4 ",
    "a?b=c#d.mp4",
    "a\\b.mp4",
    "match:5",
    "0",
    "0001",
    "C:x.mp4",
    "x@y:z@w.mp4",
    "\u00e9t\u00e9.mp4",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_watched_whatever_its_name_could_mean(tmp_path, monkeypatch, name):
    """FFmpeg takes what is before a colon for a protocol; digits are not a webcam where a file of that name is."""
    film(tmp_path / "film.mp4", [plain(RED)] * 5)
    (tmp_path / "film.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for spelling in (name, f"./{name}", str(tmp_path / name)):
        assert len(read_video(spelling)[0]) == 2
        with open_source(spelling) as source:
            assert isinstance(source, FileSource) and len(list(source)) == 1


@pytest.mark.parametrize("name", ["0001", "7", "match:5", "http:", "clip.mp4", "\u00e9t\u00e9"])
def test_a_folder_is_watched_whatever_its_name_could_mean(tmp_path, monkeypatch, name):
    """A dataset's folders are called 0001, 0002 ...: those are no webcams."""
    (tmp_path / name).mkdir()
    for number in range(4):
        Image.fromarray(plain(RED)).save(tmp_path / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    with open_source(name) as source:
        assert isinstance(source, FolderSource) and len(list(source)) == 2


def test_digits_of_no_folder_are_a_webcam_only_as_one_writes_it():
    refused(lambda: open_source("0001"), "0001", "no such file")
    refused(lambda: open_source("63"), "webcam 63", "a source that opens")
    refused(lambda: open_source(63), "webcam 63", "a source that opens")


def test_file_addresses_home_and_either_unicode_form_name_a_file(tmp_path, monkeypatch):
    film(tmp_path / "half time.mp4", [plain(RED)] * 5)
    film(tmp_path / unicodedata.normalize("NFD", "\u00e9t\u00e9.mp4"), [plain(RED)] * 5)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in (
        f"file://{tmp_path}/half%20time.mp4",
        f"file:{tmp_path}/half time.mp4",
        "file:half%20time.mp4",
        "~/half time.mp4",
    ):
        with open_source(name) as source:
            assert isinstance(source, FileSource) and len(list(source)) == 1
    assert len(read_video(unicodedata.normalize("NFC", "\u00e9t\u00e9.mp4"))[0]) == 2


@pytest.mark.parametrize(
    "name", ["x" * 3000 + ".mp4", "a/" * 2000 + "x.mp4", "x\0y.mp4", "no.mp4", "http:", "http:/x", "", " "]
)
def test_a_name_of_nothing_is_one_short_line(name):
    for call in (open_source, read_video):
        with pytest.raises(InputError) as error:
            call(name)
        assert len(str(error.value)) < 300 and "no such file" in str(error.value)


@pytest.mark.parametrize("kind", ["a pipe", "a pipe with a writer", "a socket", "a device"])
def test_what_would_wait_for_ever_is_refused_and_never_opened(tmp_path, kind):
    """Opening a FIFO without a writer holds a thread in C for good, in a server too."""
    path = tmp_path / "camera.mp4"
    if kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    reader = os.open(path, os.O_RDWR) if "writer" in kind else None  # with both ends in one hand nobody waits
    results = []

    def ask():
        for call in (open_source, read_video):
            with pytest.raises(InputError) as error:
                call(path)
            results.append(str(error.value))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HANG)
    assert len(results) == 2 and all(kind.split(" with")[0] in result and "\n" not in result for result in results)
    if reader is not None:
        os.close(reader)


def test_hidden_files_and_folders_are_no_frames(tmp_path):
    """macOS puts a ._NAME beside every file on a network disk; a broken one would end the stream."""
    for number in range(4):
        Image.fromarray(plain(RED)).save(tmp_path / f"frame{number}.png")
        (tmp_path / f"._frame{number}.png").write_bytes(b"\0" * 88)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / ".x.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"\0")
    with open_source(tmp_path) as source:
        assert source.total == 2 and len(list(source)) == 2


def test_a_folder_of_hidden_files_alone_has_no_images(tmp_path):
    (tmp_path / "._frame1.png").write_bytes(b"\0" * 88)
    refused(lambda: open_source(tmp_path), "no images")


@pytest.mark.parametrize(
    "address, printed",
    [
        ("rtsp://10.0.0.2:554/h264", "rtsp://10.0.0.2:554/h264"),
        ("rtsp://u:p@10.0.0.2:554/h264", "rtsp://***@10.0.0.2:554/h264"),
        ("https://host/a/b.m3u8?x=1&y=2", "https://host/a/b.m3u8?x=***&y=***"),
        ("RTSP://U:P@host/x", "RTSP://***@host/x"),
        ("films/2024-05-01T10:30:12.mp4", "films/2024-05-01T10:30:12.mp4"),
        ("rtsp//u:p@host/x", "***@host/x"),  # mistyped
        ("//u:p@host/x", "***@host/x"),
        ("films/10:30 me@home.mp4", "films/10:30 me@home.mp4"),
        ("srt://host:9000?passphrase=abc", "srt://host:9000?passphrase=***"),
    ],
)
def test_what_is_no_secret_of_an_address_is_still_shown(address, printed):
    assert masked(address) == printed


def test_a_command_that_is_given_an_address_too_many_does_not_print_its_password(capsys):
    from svlm_jax.cli.stream import make_parser

    with pytest.raises(SystemExit):
        make_parser().parse_args(["film.mp4", "rtsp://viewer:s3cret@host/cam"])
    stderr = capsys.readouterr().err
    assert "rtsp://***@host/cam" in stderr and "s3cret" not in stderr
