"""Stage 1: overlapped-chunk SFT on everything (StreamingVLM, arXiv 2510.09608, section 3.3).

    svlm train --config sft_stage1 --run-dir RUN --data.paths train.jsonl --data.eval-paths eval.jsonl

Full fine-tuning of the decoder on windows of 24 s cut every 12 s, the vision tower frozen: AdamW, learning rate 1e-5, cosine,
3 % warm-up, 512 samples a step, one epoch, bfloat16 with float32 masters, as little rematerialisation as fits. Written for 8
GPUs of 80 GB (`--dry-run h100x8`: it fits); time and result: not measured.
"""

from svlm_jax.train.config import TrainConfig

config = TrainConfig(model="Qwen/Qwen2.5-VL-7B-Instruct", batch_size=512, micro_batch_size=8)
