"""Write a model of random weights to train from scratch: the shape of the shipped one, a tokenizer of the commentary's words.

    svlm scratch films/matches.jsonl --out tiny-0
    svlm scratch films/matches.jsonl --out tiny-0 --family qwen3-vl

Hugging Face layout: config, safetensors, tokenizer, pixel settings. Then `svlm train --config touchline_stage1 --model tiny-0`.
"""

from pathlib import Path

from svlm_jax.cli.flags import MAX_SEED, Parser, integer
from svlm_jax.data.annotation import parse_line
from svlm_jax.data.records import Records
from svlm_jax.families import family_named


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="MATCHES.jsonl", help="annotations that the tokenizer is trained on"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new directory")
    parser.add_argument("--seed", type=integer(0, MAX_SEED), default=0, help="of the weights (default 0)")
    parser.add_argument("--family", default="qwen2.5-vl", metavar="NAME", help="of the model (default qwen2.5-vl)")
    args = parser.parse_args()
    family = family_named(args.family)
    from svlm_jax.touchline.scratch import scratch

    records = Records(args.sources)
    config = scratch(args.out, (parse_line(line, name) for name, line in records), family=family, seed=args.seed)
    size = sum(path.stat().st_size for path in args.out.glob("*.safetensors"))
    print(f"{config.text.vocab_size} tokens, {size / 4e6:.1f} M parameters -> {args.out}")
