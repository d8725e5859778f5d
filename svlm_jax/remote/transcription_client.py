"""Any server with OpenAI's endpoint of transcriptions, `/v1/audio/transcriptions`: asked for words with times until it answers,
answers kept.

What an address, a key, a retry and an error are: `connection`. The name of an answer in the cache is of the sound and of what
is asked, not of the server: `response_cache`. Does not know what an answer says. Host side, never jax.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from svlm_jax.errors import InputError, shortened
from svlm_jax.media.paths import masked
from svlm_jax.remote.connection import KEY_ENV, RETRIES, Connection
from svlm_jax.remote.response_cache import ResponseCache, canonical

TIMEOUT = 600.0  # seconds without a byte, of one try: a server without an accelerator takes minutes for ten minutes of sound
# Times that are asked for, best first: some servers know no words, and some refuse to be asked which.
GRANULARITIES = (("word", "segment"), ("segment",), ())

Answer = TypeVar("Answer")


class TranscriptionClient:
    """One model of one server. Threads may share it."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_env: str = KEY_ENV,
        cache: str | Path | None = None,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
        flag: str = "--asr",
    ) -> None:
        """Args and errors: those of `Connection`; cache: a folder of answers."""
        self.url, self.model, self.flag = url, model, flag
        self.cache = ResponseCache(cache) if cache is not None else None
        self._connection = Connection(url, model, key_env=key_env, timeout=timeout, retries=retries, flag=flag)
        self._form = 0  # of GRANULARITIES; those before it are refused

    def transcribe(
        self,
        digest: str,
        encode: Callable[[], bytes],
        name: str,
        read: Callable[[Mapping[str, Any]], Answer],
        **parameters: str | None,
    ) -> Answer:
        """What is said in a sound, from the cache or the server.

        Args:
            digest: of the sound, by which its answer is kept.
            encode: gives the file; called where the server is asked.
            name: of the file; its suffix says the format.
            read: makes of the answer what the caller wants; ValueError where it cannot: asked for again, and not kept.
            parameters: language, prompt; None is left out.

        Raises:
            RequestError: this sound is not transcribed.
            InputError: none will be: a refused key, an unknown model, no credit, files that are too large, or a model that
                gives no times.
        """
        set_parameters = {key: value for key, value in parameters.items() if value}
        request = canonical({"model": self.model, "sound": digest, **set_parameters})
        if entry := self.cache and self.cache.read(request):
            try:
                return read(self._decode(entry["response"]))
            except ValueError:
                pass  # damaged
        content = encode()

        def read_and_keep(body: str) -> Answer:
            answer = read(self._decode(body))
            if self.cache:
                self.cache.write(request, {"response_format": "verbose_json", **set_parameters}, body)
            return answer

        return self._connection.ask(lambda: self._send((name, content), set_parameters), read_and_keep, "transcription")

    def _send(self, file: tuple[str, bytes], parameters: Mapping[str, str]) -> str:
        from openai import APIStatusError, OpenAIError

        while True:
            form = self._form
            request: dict[str, Any] = {"file": file, "model": self.model, "response_format": "verbose_json", **parameters}
            if GRANULARITIES[form]:
                request["timestamp_granularities"] = list(GRANULARITIES[form])
            try:
                return self._connection.openai.audio.transcriptions.with_raw_response.create(**request).text
            except APIStatusError as error:
                if self._refuses(error, form):
                    self._form = max(self._form, form + 1)  # from now on: another thread may have seen it too
                    continue
                raise self._explain(error, len(file[1])) from None
            except OpenAIError as error:
                raise self._connection.explain(error) from None

    def _refuses(self, error: Any, form: int) -> bool:
        """Whether it is a 400 about the times that are asked for, and less can be asked."""
        text = f"{error.param} {error.message}"
        return error.status_code in (400, 422) and "granularit" in text and form + 1 < len(GRANULARITIES)

    def _explain(self, error: Any, size: int) -> Exception:
        text, address = f"{error.param} {error.message}", f"{self.flag}-url {masked(self.url)}"
        if error.status_code == 413:
            got = f"413: {size / 1e6:.1f} MB are more than it takes"
            return InputError(address, got, "files that it takes", f"lower {self.flag}-megabytes")
        if error.status_code in (400, 422) and ("response_format" in text or "verbose_json" in text):
            return self._no_times(f"{error.status_code}: {self._connection.hide(error.message)}")
        return self._connection.explain(error)

    def _decode(self, body: str) -> Mapping[str, Any]:
        """Raises:
        ValueError: no transcription. InputError: one without times.
        """
        try:
            answer = json.loads(body)
        except RecursionError:
            raise ValueError("JSON that is nested too deeply") from None
        if isinstance(answer, dict) and any(isinstance(answer.get(key), list) for key in ("words", "segments")):
            return answer
        if isinstance(answer, dict) and isinstance(answer.get("text"), str):
            if answer["text"].strip():
                raise self._no_times("a text without times")
            return {**answer, "segments": []}  # silence, of which some servers say only that
        raise ValueError(repr(body[:60]))

    def _no_times(self, got: str) -> InputError:
        address, model = f"{self.flag}-url {masked(self.url)}", shortened(self.model, 60)
        remedy = f"another {self.flag}-model than {model}, such as whisper-1"
        return InputError(address, got, "words or segments with times (verbose_json)", remedy)
