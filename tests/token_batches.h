/* token_batches.h - for tests: a token file written batch by batch, batch i being a function of i. */
#ifndef NIBBLE_TESTS_TOKEN_BATCHES_H
#define NIBBLE_TESTS_TOKEN_BATCHES_H
#include "io/io.h"
#include "scratch.h"
#include <check.h>

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static inline void must(status s)
{
    ck_assert_msg(s == NB_OK, "%s: %s", nb_status_name(s), nb_fail_message());
}

static inline void must_fail(status s, status wanted, const char *text)
{
    ck_assert_msg(s == wanted && strstr(nb_fail_message(), text), "%s: %s; wanted %s with '%s'", nb_status_name(s),
                  nb_fail_message(), nb_status_name(wanted), text);
}

static inline fm_tokenizer byte_tokenizer(void)
{
    fm_tokenizer tk;
    must(fm_tokenizer_byte(&tk));
    return tk;
}

enum { ROW = 64, ROWS = 4, BATCH = ROW * ROWS, BATCHES = 6 };

static inline void make_batch(int32_t *ids, int64_t batch, int64_t vocab_size)
{
    for (int64_t i = 0; i < BATCH; i++)
        ids[i] = i % ROW == 0 ? 256 : (int32_t)(nb_random(3, (uint64_t)batch, (uint64_t)i) % (uint64_t)vocab_size);
}

static inline fm_tokens_settings settings_for(const fm_tokenizer *tk)
{
    return (fm_tokens_settings){.vocab_size = 300,
                                .row_length = ROW,
                                .seed = 7,
                                .settings = "{\"temperature\":1,\"start\":\"bos\",\"tokens\":1536}",
                                .tokenizer = tk};
}

/* Writes the batches that are missing up to `until`. */
static inline status go_on(fm_tokens_writer *w, int64_t until, int64_t vocab_size)
{
    int32_t ids[BATCH];
    while (w->n_batches < until) {
        make_batch(ids, w->n_batches, vocab_size);
        TRY(fm_tokens_writer_append(w, ids, BATCH, NULL, 0));
    }
    return NB_OK;
}

static inline void write_whole(const char *path, const fm_tokens_settings *s)
{
    fm_tokens_writer w;
    must(fm_tokens_writer_open(&w, path, s, false));
    ck_assert_int_eq(w.n_batches, 0);
    must(go_on(&w, BATCHES, s->vocab_size));
    ck_assert_int_eq(w.n_tokens, BATCHES * BATCH);
    must(fm_tokens_writer_finish(&w));
    fm_tokens_writer_close(&w);
}

static inline bool same_files(const char *a, const char *b)
{
    nb_mapped x, y;
    must(nb_map(&x, a));
    must(nb_map(&y, b));
    bool same = x.bytes == y.bytes && memcmp(x.data, y.data, x.bytes) == 0;
    nb_unmap(&x);
    nb_unmap(&y);
    return same;
}

static inline const char *part_of(const char *path)
{
    static char part[1100];
    strcat(strcpy(part, path), ".part");
    return part;
}

#endif
