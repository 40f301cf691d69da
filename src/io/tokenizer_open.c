/* tokenizer_open.c - opens a tokenizer of any kind; which one is seen from the contents:
 *   "nibbletk" our own form | "GGUF" | '{' JSON | protocol buffer with a first piece: SentencePiece | llama2.c
 * In a folder tokenizer.model comes first: it has the real scores.
 */
#include "io/tokenizer.h"

#include <stdlib.h>
#include <string.h>

static bool is_json(const uint8_t *data, size_t bytes)
{
    size_t i = 0;
    while (i < bytes && (data[i] == ' ' || data[i] == '\n' || data[i] == '\r' || data[i] == '\t'))
        i++;
    return i < bytes && data[i] == '{';
}

static status read_any(fm_tokenizer *tk, const uint8_t *data, size_t bytes, const char *path)
{
    if (fm_tokenizer_is_serialized(data, bytes))
        return fm_tokenizer_from_bytes(tk, data, bytes);
    if (is_json(data, bytes))
        return fm_tokenizer_read_json(tk, (const char *)data, bytes, path);
    if (bytes >= 3 && data[0] == 0x0A && data[2] == 0x0A) { /* field 1 (pieces) and in it field 1 (piece) */
        TRY(fm_tokenizer_read_sentencepiece(tk, data, bytes));
        return fm_tokenizer_read_template(tk, path);
    }
    if (bytes >= 4 && data[2] == 0 && data[3] == 0) /* u32 max_token_length < 65536 */
        return fm_tokenizer_read_llama2c(tk, data, bytes);
    return nb_fail(NB_FORMAT, "neither a tokenizer.bin of llama2.c, a SentencePiece model, a GGUF file nor a "
                              "tokenizer.json");
}

/* The file that stands for a folder; the caller frees it. */
static char *file_of(const char *path)
{
    static const char *const names[] = {"tokenizer.model", "tokenizer.json", "vocab.json"};
    if (!nb_path_is_folder(path))
        return nb_string(path);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *file = nb_path_join(path, names[i]);
        if (!file || nb_path_exists(file))
            return file;
        free(file);
    }
    return nb_path_join(path, names[0]);
}

static status open_file(fm_tokenizer *tk, const char *path)
{
    char *file = file_of(path);
    if (!file)
        return NB_NOMEM;
    nb_mapped m = {0};
    status s = nb_map(&m, file);
    bool is_gguf = s == NB_OK && m.bytes >= 4 && memcmp(m.data, "GGUF", 4) == 0;
    if (is_gguf)
        s = fm_tokenizer_read_gguf(tk, file);
    else if (s == NB_OK && (s = read_any(tk, m.data, m.bytes, file)) != NB_OK)
        s = nb_fail_in(s, "%s", file);
    nb_unmap(&m);
    free(file);
    return s;
}

status fm_tokenizer_open(fm_tokenizer *tk, const char *path, int64_t vocab_size)
{
    *tk = (fm_tokenizer){0};
    if (strcmp(path, "bytes") == 0 && !nb_path_exists(path))
        TRY(fm_tokenizer_byte(tk));
    else {
        status s = open_file(tk, path);
        if (s != NB_OK) {
            fm_tokenizer_free(tk);
            return s;
        }
    }
    if (vocab_size > 0 && tk->vocab_size != vocab_size) {
        status s = nb_fail(NB_FORMAT, "%s: the tokenizer has %lld tokens, the model %lld", path,
                           (long long)tk->vocab_size, (long long)vocab_size);
        fm_tokenizer_free(tk);
        return s;
    }
    return NB_OK;
}
