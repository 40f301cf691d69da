/* tokenizer_json.h - private to the reader of tokenizer.json: its stages other than the model. */
#ifndef NIBBLE_IO_TOKENIZER_JSON_H
#define NIBBLE_IO_TOKENIZER_JSON_H
#include "io/tokenizer.h"

/* Sets byte_level, normalization and pre-tokenizers of tk from normalizer and pre_tokenizer of the root. */
status fm_json_stages(fm_tokenizer *tk, const nb_json *root);
/* Sets bos and add_bos from a post_processor that puts a token in front (the vocabulary is indexed). */
status fm_json_post(fm_tokenizer *tk, const nb_json *post);

#endif
