#!/usr/bin/env python3
"""Makes a folder for transformers of a checkpoint: weights, configuration and the tokenizer.

    scripts/export_hf.py runs/NAME/checkpoints/step_00064000 --out DIR

A checkpoint opens with AutoModelForCausalLM as it is; what it lacks is a tokenizer. This copies config.json
and model.safetensors and writes tokenizer.json and tokenizer_config.json, so that
AutoTokenizer.from_pretrained(DIR) gives the ids that the model was trained on. The tokenizer is that of data.tokenizer
(or --tokenizer: bytes, gpt2, a file or folder; none writes no tokenizer). Bytes become a byte-level BPE without merges.
"""
import argparse
import json
import os
import shutil
import sys

from corpus import DataError, bpe
from prepare_data import GPT2_FOLDER

WEIGHTS = ("config.json", "model.safetensors")


def written(token):
    """Bytes in GPT-2's alphabet of printable characters."""
    return "".join(written.letters[byte] for byte in token)


written.letters = {byte: letter for letter, byte in bpe.byte_alphabet().items()}


def parts(token, ids):
    """The two tokens whose merge made this one: what remains when merges of lesser rank are done."""
    pieces = [token[i:i + 1] for i in range(len(token))]
    while len(pieces) > 2:
        ranks = [ids.get(pieces[i] + pieces[i + 1], ids[token]) for i in range(len(pieces) - 1)]
        best = min(range(len(ranks)), key=ranks.__getitem__)
        if ranks[best] >= ids[token]:
            return None
        pieces[best:best + 2] = [pieces[best] + pieces[best + 1]]
    return pieces


def merges_of(vocabulary):
    """Pairs of bytes in the order of their ranks."""
    if vocabulary.pairs is not None:
        return sorted(vocabulary.pairs, key=vocabulary.pairs.get)
    tokens = sorted((token for token in vocabulary.ids if len(token) > 1), key=vocabulary.ids.get)
    # A token that no merges lead to is found as a whole word only, which ignore_merges allows.
    return [pair for pair in (parts(token, vocabulary.ids) for token in tokens) if pair]


def tokenizer_json(vocab, merges, end_of_text, whole_words):
    """The file of Hugging Face's tokenizers library; without merges every byte is a token."""
    added = [] if end_of_text is None else [{
        "id": end_of_text, "content": bpe.END_OF_TEXT, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": True}]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": bool(merges)}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": level, "post_processor": None, "decoder": level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                      "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
                      "ignore_merges": whole_words, "vocab": vocab,
                      "merges": [[written(left), written(right)] for left, right in merges]}}


def write_tokenizer(name, model_vocabulary, folder):
    """tokenizer.json and tokenizer_config.json of one of our tokenizers; `model_vocabulary`: of the model."""
    if name == "bytes":
        size = 256
        content = tokenizer_json({written(bytes([byte])): byte for byte in range(256)}, [], None, False)
    else:
        vocabulary = bpe.find_vocabulary(GPT2_FOLDER if name == "gpt2" else name)
        if vocabulary is None:
            raise DataError(f"tokenizer {name}: not found from here; name its file or folder by --tokenizer, or "
                            "leave it out by --tokenizer none", 2)
        size = vocabulary.size
        content = tokenizer_json({written(token): number for token, number in vocabulary.ids.items()},
                                 merges_of(vocabulary), vocabulary.end_of_text, vocabulary.pairs is None)
    if size > model_vocabulary:
        raise DataError(f"tokenizer {name} has {size} tokens, but the model's vocabulary is {model_vocabulary}: it was "
                        "not trained on these", 2)
    end = bpe.END_OF_TEXT if content["added_tokens"] else None
    os.makedirs(folder, exist_ok=True)
    write_json(os.path.join(folder, "tokenizer.json"), content)
    write_json(os.path.join(folder, "tokenizer_config.json"), {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False, "clean_up_tokenization_spaces": False,
        "bos_token": end, "eos_token": end})


def write_json(path, content):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=1)
        file.write("\n")


def read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}; give a checkpoint, as "
                        "runs/NAME/checkpoints/step_00001000", 2) from None


def export(arguments):
    size = read_json(os.path.join(arguments.checkpoint, "config.json"))["vocab_size"]
    name = arguments.tokenizer
    if name is None:
        name = read_json(os.path.join(arguments.checkpoint, "state.json"))["config"]["data"]["tokenizer"]
    if name is None:
        raise DataError("the run had no data.tokenizer: name one by --tokenizer, or leave it out by --tokenizer none",
                        2)
    if name != "none":
        write_tokenizer(name, size, arguments.out)
    os.makedirs(arguments.out, exist_ok=True)
    for file in WEIGHTS:
        shutil.copyfile(os.path.join(arguments.checkpoint, file), os.path.join(arguments.out, file))
    return name


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder of a checkpoint")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write")
    parser.add_argument("--tokenizer", metavar="NAME",
                        help="bytes, gpt2, a file or folder, or none; default: the run's")
    arguments = parser.parse_args()
    try:
        name = export(arguments)
    except DataError as error:
        print(f"export_hf.py: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        print(f"export_hf.py: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {', '.join(WEIGHTS)}" + (f" and tokenizer {name}" if name != "none" else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
