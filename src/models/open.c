/* open.c - opens any model: what a path is, is seen from its content (fm_file_kind_of), then its own reader takes over. */
#include "models/bind.h"
#include <string.h>

status md_take_tokenizer(md_model *m, fm_tokenizer *tk, const char *path)
{
    const int64_t missing = m->config.vocab - tk->vocab_size;
    if (missing < 0 || missing > 1024 || missing > m->config.vocab / 8) {
        status s = nb_fail(NB_USAGE, "%s: a tokenizer of %lld pieces for a model of %lld ids", path,
                           (long long)tk->vocab_size, (long long)m->config.vocab);
        fm_tokenizer_free(tk);
        return s;
    }
    if (tk->bos >= 0)
        m->config.bos = tk->bos;
    if (tk->eos >= 0)
        m->config.eos = tk->eos;
    fm_tokenizer_free(&m->tokenizer);
    m->tokenizer = *tk;
    return NB_OK;
}

status md_attach_tokenizer(md_model *m, const char *path)
{
    fm_tokenizer tk = {0};
    TRY(fm_tokenizer_open(&tk, path, 0));
    return md_take_tokenizer(m, &tk, path);
}

void md_carry(md_model *to, md_model *from)
{
    to->tokenizer = from->tokenizer;
    to->gguf = from->gguf;
    to->gguf_bytes = from->gguf_bytes;
    from->tokenizer = (fm_tokenizer){0};
    from->gguf = NULL;
    from->gguf_bytes = 0;
}

static status unknown_file(const char *path)
{
    if (!nb_path_exists(path))
        return nb_fail(NB_IO, "%s: no such file or folder", path);
    if (nb_path_is_folder(path))
        return nb_fail(NB_FORMAT, "%s: a folder without model.safetensors or model.safetensors.index.json", path);
    return nb_fail(NB_FORMAT, "%s: neither a GGUF, llama2.c, safetensors nor nibble file", path);
}

static status open_kind(md_model *m, const char *path, const md_open_options *o, const fq_recipe *recipe)
{
    fm_file_kind kind;
    TRY(fm_file_kind_of(&kind, path));
    switch (kind) {
    case FM_FILE_LLAMA2C:
        return md_open_llama2c(m, path, recipe, o);
    case FM_FILE_SAFETENSORS:
        return md_open_hf(m, path, recipe, o);
    case FM_FILE_HDF5:
        return md_open_h5(m, path, recipe, o);
    case FM_FILE_GGUF:
        return md_open_gguf(m, path, recipe, o);
    default:
        return unknown_file(path);
    }
}

status md_open(md_model *m, const char *path, const md_open_options *o)
{
    static const md_open_options none = {0};
    fq_recipe recipe = {0};
    *m = (md_model){0};
    o = o ? o : &none;
    if (o->fold && (!o->recipe || o->train || o->untie))
        return nb_fail(NB_USAGE, "%s: a model is folded while it is read by a recipe, and gets no head of its own", path);
    if (o->recipe)
        TRY(fq_recipe_open(&recipe, o->recipe));
    status s = open_kind(m, path, o, o->recipe ? &recipe : NULL);
    if (s == NB_OK && o->tokenizer)
        s = md_attach_tokenizer(m, o->tokenizer);
    if (s == NB_OK && o->untie && (s = md_untie(m)) != NB_OK)
        s = nb_fail_in(s, "%s", path);
    fq_recipe_free(&recipe);
    if (s != NB_OK)
        md_free(m);
    return s;
}
