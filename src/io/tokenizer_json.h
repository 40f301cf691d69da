/* tokenizer_json.h - private to the reader and the writer of tokenizer.json: its stages other than the model; what the writer's files share. */
#ifndef NIBBLE_IO_TOKENIZER_JSON_H
#define NIBBLE_IO_TOKENIZER_JSON_H
#include "io/tokenizer.h"

/* Sets byte_level, normalization and pre-tokenizers of tk from normalizer and pre_tokenizer of the root. */
status fm_json_stages(fm_tokenizer *tk, const nb_json *root);
/* Sets bos and add_bos from a post_processor that puts a token in front (the vocabulary is indexed). */
status fm_json_post(fm_tokenizer *tk, const nb_json *post);

/* ---- writing ---- */

/* folder/tokenizer.json. */
status fm_tokenizer_write_json(const fm_tokenizer *tk, const char *folder);
/* text <- a piece as JSON has it, NUL-terminated; NB_UNSUPPORTED where it is no UTF-8, or has a NUL. */
status fm_piece_name(char text[FM_PIECE_BYTES + 1], const fm_tokenizer *tk, int32_t id);
status fm_put_piece(nb_writer *w, const char *key, const fm_tokenizer *tk, int32_t id); /* "key": its name; nothing for id -1 */
status fm_write_text(const char *folder, const char *name, char *text); /* folder/name <- text, which is freed; NULL: no memory */

#endif
