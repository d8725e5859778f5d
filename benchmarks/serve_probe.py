"""How long a token takes from its choice to a client: `python -m benchmarks.serve_probe URL STREAM...` watches streams as a
plain client of the realtime API, in a process of its own so that no other client delays it, until all have ended.

Prints a JSON line: [when, seconds from the choice to the arrival, whether it was the first of its reply], for each delta. Both
times are of the monotonic clock that all processes of a machine share.
"""

import asyncio
import json
import sys
import time

from benchmarks.serve_clients import websocket


async def probe(url: str, stream: str, delays: list[tuple[float, float, bool]]) -> None:
    """Watch one stream to its end."""
    from websockets.asyncio.client import connect

    async with connect(f"{websocket(url)}?stream={stream}", max_size=None) as socket:
        is_first = False  # whether its start was seen: else it is none
        while True:
            data = await socket.recv()
            now = time.monotonic()
            event = json.loads(data)
            if event["type"] == "response.created":
                is_first = True
            elif event["type"] == "response.output_text.delta":
                if (chosen_at := event.get("svlm", {}).get("chosen_at")) is not None:
                    delays.append((now, now - chosen_at, is_first))
                is_first = False
            elif event["type"] == "svlm.stream.ended":
                return


async def main() -> None:
    url, *streams = sys.argv[1:]
    delays: list[tuple[float, float, bool]] = []
    await asyncio.gather(*(probe(url, stream, delays) for stream in streams))
    print(json.dumps(delays))


if __name__ == "__main__":
    asyncio.run(main())
