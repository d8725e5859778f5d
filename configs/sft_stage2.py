"""Stage 2: annealing on samples of high quality, from the weights of stage 1 (StreamingVLM, arXiv 2510.09608, section 3.3).

    svlm convert RUN_OF_STAGE_1 stage1-hf
    svlm train --config sft_stage2 --model stage1-hf --run-dir RUN --data.paths best.jsonl

The settings of stage 1 on other data. Time and result: not measured.
"""

from svlm_jax.train.config import TrainConfig

config = TrainConfig(model="stage1-hf", batch_size=512, micro_batch_size=8)
