/* tokenizer_write.c - a Hugging Face folder's files of a tokenizer: tokenizer.model, SentencePiece's protocol buffer (fields in
 * tokenizer_sentencepiece.c), or tokenizer.json (tokenizer_write_json.c); tokenizer_config.json in both cases.
 */
#include "io/formats.h"
#include "io/tokenizer.h"
#include "io/tokenizer_json.h"

#include <stdlib.h>
#include <string.h>

status fm_write_text(const char *folder, const char *name, char *text)
{
    char *path = nb_path_join(folder, name);
    fm_sink sink;
    status s = path && text ? fm_sink_open(&sink, path) : nb_fail(NB_NOMEM, "%s: no memory for %s", folder, name);
    if (s == NB_OK)
        s = fm_sink_close(&sink, fm_sink_raw(&sink, text, strlen(text)));
    free(path);
    free(text);
    return s;
}

/* ---- tokenizer.model ---------------------------------------------------------------------- */

enum { VARINT = 0, BYTES = 2, FIXED32 = 5, MOST = 10 /* bytes of a varint */ };

typedef struct { /* a small message; `full` where it is not small */
    uint8_t data[4096 + 64];
    size_t n;
    bool full;
} message;

static void put_raw(message *m, const void *data, size_t bytes)
{
    m->full = m->full || bytes > sizeof m->data - m->n;
    if (m->full)
        return;
    memcpy(m->data + m->n, data, bytes);
    m->n += bytes;
}

static void put_varint(message *m, uint64_t x)
{
    uint8_t bytes[MOST];
    size_t n = 0;
    for (; x >= 128; x >>= 7)
        bytes[n++] = (uint8_t)(x | 128);
    bytes[n++] = (uint8_t)x;
    put_raw(m, bytes, n);
}

static void put_number(message *m, int field, uint64_t x)
{
    put_varint(m, (uint64_t)field << 3 | VARINT);
    put_varint(m, x);
}

static void put_bytes(message *m, int field, fm_text t)
{
    put_varint(m, (uint64_t)field << 3 | BYTES);
    put_varint(m, t.bytes);
    put_raw(m, t.text, t.bytes);
}

/* A message inside another: its field, its length, itself. */
static status put_message(fm_sink *sink, int field, const message *m)
{
    message head = {.n = 0};
    if (m->full)
        return nb_fail(NB_UNSUPPORTED, "a piece of more than %d bytes", FM_PIECE_BYTES);
    put_varint(&head, (uint64_t)field << 3 | BYTES);
    put_varint(&head, m->n);
    TRY(fm_sink_raw(sink, head.data, head.n));
    return fm_sink_raw(sink, m->data, m->n);
}

/* An id and the name by which it is known: fields 40 + k and 45 + k of TrainerSpec. */
static void put_special(message *m, const fm_tokenizer *tk, int k, int32_t id)
{
    put_number(m, 40 + k, (uint64_t)(int64_t)id);
    if (id >= 0)
        put_bytes(m, 45 + k, fm_tokenizer_piece(tk, id).text);
}

static status put_model(fm_sink *sink, const fm_tokenizer *tk)
{
    enum { PIECES = 1, TRAINER = 2, NORMALIZER = 3, BPE = 2 };
    static const char identity[] = "identity";
    for (int32_t id = 0; id < tk->vocab_size; id++) {
        message m = {.n = 0};
        const fm_piece p = fm_tokenizer_piece(tk, id);
        put_bytes(&m, 1, p.text);
        put_varint(&m, 2 << 3 | FIXED32);
        put_raw(&m, &p.score, sizeof p.score);
        put_number(&m, 3, p.type);
        TRY(put_message(sink, PIECES, &m));
    }
    message trainer = {.n = 0}, normalizer = {.n = 0};
    put_number(&trainer, 3, BPE);
    put_number(&trainer, 4, (uint64_t)tk->vocab_size);
    put_number(&trainer, 35, tk->byte_fallback);
    put_special(&trainer, tk, 0, tk->unknown);
    put_special(&trainer, tk, 1, tk->bos);
    put_special(&trainer, tk, 2, tk->eos);
    put_special(&trainer, tk, 3, tk->pad);
    TRY(put_message(sink, TRAINER, &trainer));
    put_bytes(&normalizer, 1, (fm_text){identity, sizeof identity - 1});
    put_bytes(&normalizer, 2, (fm_text){"", 0});
    put_number(&normalizer, 3, tk->add_space_prefix);
    put_number(&normalizer, 4, tk->remove_extra_spaces);
    put_number(&normalizer, 5, true);
    return put_message(sink, NORMALIZER, &normalizer);
}

static status write_model(const fm_tokenizer *tk, const char *folder)
{
    char *path = nb_path_join(folder, "tokenizer.model");
    fm_sink sink;
    status s = path ? fm_sink_open(&sink, path) : NB_NOMEM;
    if (s == NB_OK)
        s = fm_sink_close(&sink, put_model(&sink, tk));
    free(path);
    return s;
}

/* ---- tokenizer_config.json ---------------------------------------------------------------- */

status fm_put_piece(nb_writer *w, const char *key, const fm_tokenizer *tk, int32_t id)
{
    char text[FM_PIECE_BYTES + 1];
    if (id < 0)
        return NB_OK;
    TRY(fm_piece_name(text, tk, id));
    nb_json_put_string(w, key, text);
    return NB_OK;
}

static status put_config(nb_writer *w, const fm_tokenizer *tk)
{
    TRY(fm_put_piece(w, "bos_token", tk, tk->bos));
    TRY(fm_put_piece(w, "eos_token", tk, tk->eos));
    TRY(fm_put_piece(w, "unk_token", tk, tk->unknown));
    TRY(fm_put_piece(w, "pad_token", tk, tk->pad));
    nb_json_put_bool(w, "add_bos_token", tk->add_bos);
    nb_json_put_bool(w, "add_eos_token", false);
    nb_json_put_bool(w, "clean_up_tokenization_spaces", false);
    nb_json_put_string(w, "tokenizer_class",
                       tk->kind == FM_TOKENIZER_SPM ? "LlamaTokenizer" : "PreTrainedTokenizerFast");
    if (tk->vocab->chat_template)
        nb_json_put_string(w, "chat_template", tk->vocab->chat_template);
    return NB_OK;
}

status fm_tokenizer_write_folder(const fm_tokenizer *tk, const char *folder)
{
    if (!tk->vocab)
        return nb_fail(NB_USAGE, "%s: there is no tokenizer", folder);
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
    status s = put_config(&w, tk);
    nb_json_close(&w, '}');
    char *text = nb_json_text(&w);
    if (s == NB_OK)
        s = tk->kind == FM_TOKENIZER_SPM ? write_model(tk, folder) : fm_tokenizer_write_json(tk, folder);
    if (s != NB_OK) {
        free(text);
        return nb_fail_in(s, "%s", folder);
    }
    return fm_write_text(folder, "tokenizer_config.json", text);
}
