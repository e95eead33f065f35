"""The toy's tokenizer file as the libraries read it."""

from tokenizers import Tokenizer

from invert3d_core.toy.vocabulary import BEGIN, END, UNKNOWN, tokenizer_json, words


def test_the_file_gives_every_word_its_id_and_unknown_ones_one():
    tokenizer = Tokenizer.from_str(tokenizer_json())
    assert len(set(words())) == len(words()) == tokenizer.get_vocab_size()
    assert words()[:3] == [BEGIN, END, UNKNOWN]
    assert tokenizer.encode("a Red chair, 3d asset").tokens == ["a", "red", "chair", ",", "3d", "asset"]
    assert tokenizer.encode("a red astronaut").tokens == ["a", "red", UNKNOWN]
