"""A search from a script: python examples/script.py train.jsonl"""

import sys

from rankloom import Search

if __name__ == "__main__":
    result = Search("HuggingFaceTB/SmolLM2-135M-Instruct", sys.argv[1], num_samples=16).run()
    print(result.best.adapter_id, result.best.metrics["eval_loss"], result.gain_over_prior)
    print(result.dataframe())
