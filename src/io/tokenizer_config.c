/* tokenizer_config.c - what lies beside a Hugging Face tokenizer: tokenizer_config.json
 *   {bos_token, eos_token, unk_token, pad_token: text, {content: text} or null; add_bos_token: bool;
 *    chat_template: text, or [{name, template}] of which "default" counts}
 * and chat_template.jinja, which goes before the template there. Where there is no configuration, special tokens are
 * known by the usual names. Source: transformers, tokenization_utils_base.py.
 */
#include "io/tokenizer.h"

#include <stdlib.h>
#include <string.h>

/* The path of a name beside path; the caller frees it. */
static char *beside(const char *path, const char *name)
{
    size_t folder = (size_t)(nb_path_name(path) - path), bytes = strlen(name);
    char *file = nb_alloc(folder + bytes + 1, 1);
    if (file) {
        memcpy(file, path, folder);
        memcpy(file + folder, name, bytes + 1);
    }
    return file;
}

/* Maps a file beside path; found says whether there is one. */
static status map_beside(nb_mapped *m, bool *found, const char *path, const char *name)
{
    char *file = beside(path, name);
    if (!file)
        return NB_NOMEM;
    *m = (nb_mapped){0};
    *found = nb_path_exists(file) && !nb_path_is_folder(file);
    status s = *found ? nb_map(m, file) : NB_OK;
    free(file);
    return s;
}

static status set_template(fm_tokenizer *tk, const nb_json *config)
{
    const nb_json *j = nb_json_get(config, "chat_template");
    const char *text = nb_json_string(j);
    for (const nb_json *i = text ? NULL : nb_json_first(j); i; i = nb_json_next(i)) {
        const char *name = nb_json_string(nb_json_get(i, "name"));
        if (name && !strcmp(name, "default"))
            text = nb_json_string(nb_json_get(i, "template"));
    }
    return text ? fm_vocab_set_template(tk, text, strlen(text)) : NB_OK;
}

static int32_t id_of(const fm_tokenizer *tk, const char *text)
{
    return text ? fm_tokenizer_find(tk, text, strlen(text)) : -1;
}

/* A special token of the configuration; *id stays where it has none. */
static void set_id(fm_tokenizer *tk, int32_t *id, const nb_json *config, const char *key)
{
    const nb_json *j = nb_json_get(config, key);
    const char *text = nb_json_string(j);
    if (!text)
        text = nb_json_string(nb_json_get(j, "content"));
    int32_t found = id_of(tk, text);
    *id = found >= 0 ? found : *id;
}

static void set_usual_ids(fm_tokenizer *tk)
{
    static const char *const names[][2] = {
        {"<s>", "</s>"}, {"<|begin_of_text|>", "<|end_of_text|>"}, {"<|endoftext|>", "<|endoftext|>"}};
    for (size_t i = 0; i < sizeof names / sizeof *names && tk->eos < 0; i++) {
        int32_t bos = id_of(tk, names[i][0]), eos = id_of(tk, names[i][1]);
        if (eos < 0 || (tk->bos >= 0 && tk->bos != bos))
            continue;
        tk->bos = bos;
        tk->eos = eos;
    }
}

/* Reads tokenizer_config.json: ids too, or the chat template alone. */
static status read_config(fm_tokenizer *tk, const char *path, bool ids)
{
    nb_mapped m;
    bool found;
    TRY(map_beside(&m, &found, path, "tokenizer_config.json"));
    nb_json *config = found ? nb_json_parse((const char *)m.data, m.bytes) : NULL;
    nb_unmap(&m);
    if (found && !config)
        return nb_fail_in(NB_FORMAT, "tokenizer_config.json");
    if (config && ids) {
        set_id(tk, &tk->bos, config, "bos_token");
        set_id(tk, &tk->eos, config, "eos_token");
        set_id(tk, &tk->unknown, config, "unk_token");
        set_id(tk, &tk->pad, config, "pad_token");
        tk->add_bos = nb_json_bool(nb_json_get(config, "add_bos_token"), tk->add_bos);
    }
    status s = set_template(tk, config);
    if (ids)
        set_usual_ids(tk);
    nb_json_free(config);
    return s;
}

/* chat_template.jinja, if it is there. */
static status read_jinja(fm_tokenizer *tk, const char *path)
{
    nb_mapped m;
    bool found;
    TRY(map_beside(&m, &found, path, "chat_template.jinja"));
    status s = found ? fm_vocab_set_template(tk, (const char *)m.data, m.bytes) : NB_OK;
    nb_unmap(&m);
    return s;
}

status fm_tokenizer_read_template(fm_tokenizer *tk, const char *path)
{
    TRY(read_config(tk, path, false));
    return read_jinja(tk, path);
}

status fm_tokenizer_read_config(fm_tokenizer *tk, const char *path)
{
    TRY(read_config(tk, path, true));
    return read_jinja(tk, path);
}
