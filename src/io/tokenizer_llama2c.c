/* tokenizer_llama2c.c - reader of llama2.c's tokenizer.bin. Little-endian, until the end of the file:
 *
 *   u32 max_token_length (not used)     n x { f32 score, i32 bytes, text }
 * Texts have a space for U+2581, BOS is "\n<s>\n", EOS "\n</s>\n". Types are not stored: <unk>, those two and <0xHH>
 * are known by their spelling. n is not stored either. Source: llama2.c tokenizer.py, run.c.
 */
#include "io/tokenizer.h"

#include <string.h>

static bool is_text(const uint8_t *p, size_t bytes, const char *text)
{
    return bytes == strlen(text) && memcmp(p, text, bytes) == 0;
}

static status add_piece(fm_tokenizer *tk, const uint8_t *p, size_t bytes, float score)
{
    int32_t id = (int32_t)tk->vocab->n;
    if (is_text(p, bytes, "\n<s>\n")) {
        tk->bos = id;
        return fm_vocab_add(tk, "<s>", 3, score, FM_PIECE_CONTROL);
    }
    if (is_text(p, bytes, "\n</s>\n")) {
        tk->eos = id;
        return fm_vocab_add(tk, "</s>", 4, score, FM_PIECE_CONTROL);
    }
    if (is_text(p, bytes, "<unk>")) {
        tk->unknown = id;
        return fm_vocab_add(tk, "<unk>", 5, score, FM_PIECE_UNKNOWN);
    }
    char text[FM_PIECE_BYTES];
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        size_t more = p[i] == ' ' ? 3 : 1;
        if (n + more > sizeof text)
            return nb_fail(NB_FORMAT, "token %d has more than %zu bytes", (int)id, sizeof text);
        memcpy(text + n, p[i] == ' ' ? FM_SPACE : (const char *)p + i, more);
        n += more;
    }
    return fm_vocab_add(tk, text, n, score, fm_byte_of_piece(text, n) >= 0 ? FM_PIECE_BYTE : FM_PIECE_NORMAL);
}

static status read_pieces(fm_tokenizer *tk, const uint8_t *data, size_t bytes)
{
    if (bytes < 4)
        return nb_fail(NB_FORMAT, "%zu bytes are no tokenizer.bin", bytes);
    for (size_t at = 4; at < bytes;) {
        if (bytes - at < 8)
            return nb_fail(NB_FORMAT, "tokenizer.bin ends inside token %lld", (long long)tk->vocab->n);
        uint32_t bits = fm_get32(data + at), length = fm_get32(data + at + 4);
        at += 8;
        if (length > FM_PIECE_BYTES || length > bytes - at)
            return nb_fail(NB_FORMAT, "tokenizer.bin: token %lld claims %u bytes; %zu are left, %d allowed",
                           (long long)tk->vocab->n, length, bytes - at, FM_PIECE_BYTES);
        float score;
        memcpy(&score, &bits, 4);
        TRY(add_piece(tk, data + at, length, score));
        at += length;
    }
    return NB_OK;
}

status fm_tokenizer_read_llama2c(fm_tokenizer *tk, const uint8_t *data, size_t bytes)
{
    TRY(fm_vocab_new(tk, FM_TOKENIZER_SPM));
    tk->add_space_prefix = tk->add_bos = true;
    TRY(read_pieces(tk, data, bytes));
    return fm_tokenizer_seal(tk);
}
