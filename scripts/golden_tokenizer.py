#!/usr/bin/env python3
"""Token ids of 5,000 random and nasty strings by Hugging Face's tokenizers, golden data of tests/tokenizer_golden.cpp.

    scripts/golden_tokenizer.py demo=tests/golden/demo_vocab gpt2=DIR      (pip install tokenizers==0.23.3)

Writes tokenizer_strings.txt (a string a line: its UTF-8 bytes in hexadecimal) and tokenizer_ids_NAME.txt (its ids) for
each vocabulary. DIR holds GPT-2's vocab.json and merges.txt, which are not part of the repository.
"""
import argparse
import os
import random
import unicodedata

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2003\u2009\u2028\u2029\u202f\u205f\u3000"
NEARLY_SPACES = "\x1c\x1f\u180e\u200b\u200c\u200d\u2060\ufeff"
SNIPPETS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "' s", "<|endoftext|>", "<|endoftext|", "<|endoftext|>>",
            "don't", "we'll", "I'd've", "\u2019s", "\0", "    ", "\n\n", "\r\n", " \n", "\n ", "\t\t", "def ", "return", "self.",
            "__init__(", "0x7f", "3.14", "1,000", "½", "Ⅷ", "٣", "²", "é", "e\u0301", "ñ", "ß", "İ", "ﬁ", "日本語", "한국어", "ไทย",
            "עברית", "العربية", "हिन्दी", "👍", "👍🏽", "👨‍👩‍👧", "🇩🇪", "❤️", "𝔘𝔫𝔦", "𒀀", "\U0010ffff", "\ufffd", "\u0130", "Ġ", "Ċ",
            "http://a.b/c?d=e&f", "a_b-c.d", "====", "#####", "!!!", "...", "(){}[]", "\\n", "\"\"\"", "ZWJ\u200d", "\u0e33"]


def known(character):
    """Assigned in Unicode 14, the version of the oldest PCRE2 that is built with; Python 3.11's own tables are that."""
    return unicodedata.category(character) not in ("Cn", "Cs", "Co")


def random_character(rng):
    kind = rng.randrange(10)
    if kind < 3:
        return chr(rng.randrange(0x20, 0x7f))
    if kind == 3:
        return rng.choice(SPACES)
    if kind == 4:
        return rng.choice(NEARLY_SPACES + "\0\x01\x1b\x7f")
    if kind == 5:
        return chr(rng.choice([0x301, 0x308, 0x327, 0x20dd, 0x93e, 0xe34, 0x5b0, 0x64b, 0x1f3fd, 0xfe0f]))
    if kind == 6:
        return chr(rng.randrange(0x1f300, 0x1f650))
    low, high = rng.choice([(0x80, 0x800), (0x800, 0x3000), (0x3000, 0xd800), (0xe000, 0x10000), (0x10000, 0x20000),
                            (0x20000, 0x30000), (0xe0000, 0xe01f0)])
    while True:
        character = chr(rng.randrange(low, high))
        if known(character):
            return character


def random_string(rng):
    kind = rng.randrange(6)
    length = int(rng.expovariate(1 / 9)) + 1
    if kind == 0:
        return "".join(random_character(rng) for _ in range(length))
    if kind == 1:
        return "".join(rng.choice(SNIPPETS) for _ in range(length))
    if kind == 2:
        return "".join(rng.choice("aeinorst   \n") for _ in range(4 * length))
    if kind == 3:
        return rng.choice(SNIPPETS) * length
    if kind == 4:
        return "".join(rng.choice([rng.choice(SPACES), rng.choice(" \n\t"), rng.choice("aZ9.'")]) for _ in range(length))
    return "".join(rng.choice([random_character(rng), rng.choice(SNIPPETS), " "]) for _ in range(length))


def tokenizer_of(folder):
    model = models.BPE.from_file(os.path.join(folder, "vocab.json"), os.path.join(folder, "merges.txt"))
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabulary", nargs="+", help="NAME=FOLDER; the folder holds vocab.json and merges.txt")
    parser.add_argument("-o", "--out", default="tests/golden")
    args = parser.parse_args()

    rng = random.Random(20240607)
    texts = [random_string(rng) for _ in range(5000)]
    assert all(known(character) or character == "\U0010ffff" for text in texts for character in text)
    with open(os.path.join(args.out, "tokenizer_strings.txt"), "w") as out:
        out.writelines(text.encode().hex() + "\n" for text in texts)
    for name, folder in (argument.split("=", 1) for argument in args.vocabulary):
        tokenizer = tokenizer_of(folder)
        with open(os.path.join(args.out, f"tokenizer_ids_{name}.txt"), "w") as out:
            out.writelines(" ".join(map(str, tokenizer.encode(text).ids)) + "\n" for text in texts)


if __name__ == "__main__":
    main()
