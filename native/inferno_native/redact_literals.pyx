"""The table of literals that announce a secret: vendors' prefixes, words such as "password", marks of formats.

Each names its recogniser and what a body must look like. The redactor's skip loop looks for them; redact_secrets judges
what stands there. Filled once when the module is loaded.
"""

from .shadow cimport (K_ANTHROPIC, K_AWS_ID, K_AWS_SECRET, K_AZURE, K_BASIC, K_BEARER, K_GENERIC, K_GITHUB, K_GITLAB, K_GOOGLE,
                      K_GOOGLE_OAUTH, K_HF, K_INFERNO, K_NPM, K_OPENAI, K_PEM, K_PYPI, K_SENDGRID, K_SERVICE, K_SLACK,
                      K_SLACK_HOOK, K_STRIPE)

NUM_LITERALS = 0
_keep = []      # the bytes objects that LITERALS points into
TABLE = []      # the same for Python, in order: text, recogniser, kind, alphabet, shortest, longest, flags, offset, fold, pair


def _add(text, recogniser, kind=0, alphabet=A_URL64, shortest=0, longest=0, flags=0, offset=0, fold=False, pair=False):
    global NUM_LITERALS
    data = text.encode("ascii")
    TABLE.append((text, recogniser, kind, alphabet, shortest, longest, flags, offset, fold, pair))
    _keep.append(data)
    cdef Literal *literal = &LITERALS[NUM_LITERALS]
    literal.text = data
    literal.size = len(data)
    literal.recogniser = recogniser
    literal.kind = kind
    literal.alphabet = alphabet
    literal.shortest = shortest
    literal.longest = longest
    literal.flags = flags
    literal.offset = offset
    literal.fold = fold
    literal.pair = pair
    NUM_LITERALS += 1


def _build():
    for prefix in ("AKIA", "ASIA", "ABIA", "ACCA"):
        _add(prefix, R_KEYED, K_AWS_ID, A_UPPER, 16, 16, F_EXACT)
    _add("ABSK", R_KEYED, K_AWS_SECRET, A_BASE64, 60, 0, F_MIX)
    for prefix in ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"):
        _add(prefix, R_KEYED, K_GITHUB, A_ALNUM, 30)
    _add("github_pat_", R_KEYED, K_GITHUB, A_WORD, 40, offset=7)
    for prefix in ("glpat-", "gldt-", "glrt-", "glcbt-", "glptt-", "glft-", "glimt-", "glsoat-", "gloas-", "glagent-",
                   "glffct-", "glrtr-", "GR1348941"):
        _add(prefix, R_KEYED, K_GITLAB, A_URL64, 18)
    for prefix in ("xoxb-", "xoxp-", "xoxa-", "xoxr-", "xoxs-", "xoxe-", "xoxc-", "xoxd-", "xoxo-", "xapp-"):
        _add(prefix, R_KEYED, K_SLACK, A_URL64, 20, 0, F_MIX)
    _add("hooks.slack.com/", R_HOOK, K_SLACK_HOOK, A_PATH, 24, offset=3)
    _add("discord.com/api/webhooks/", R_HOOK, K_SERVICE, A_PATH, 40, offset=8)
    _add("AIza", R_KEYED, K_GOOGLE, A_URL64, 33)
    _add("ya29.", R_KEYED, K_GOOGLE_OAUTH, A_DOTTED, 30, offset=1)
    _add("GOCSPX-", R_KEYED, K_GOOGLE_OAUTH, A_URL64, 20)
    for prefix in ("sk_live_", "sk_test_", "rk_live_", "rk_test_", "sk_prod_"):
        _add(prefix, R_KEYED, K_STRIPE, A_ALNUM, 16, offset=3)
    _add("whsec_", R_KEYED, K_STRIPE, A_BASE64, 20)
    _add("sk-ant-", R_KEYED, K_ANTHROPIC, A_URL64, 20, 0, F_MIX, offset=1, pair=True)
    _add("sk-", R_KEYED, K_OPENAI, A_URL64, 20, 0, F_MIX, offset=1, pair=True)
    _add("hf_", R_KEYED, K_HF, A_ALNUM, 28, offset=1, pair=True)
    _add("npm_", R_KEYED, K_NPM, A_ALNUM, 30)
    _add("pypi-", R_KEYED, K_PYPI, A_URL64, 40, 0, F_MIX, offset=1)
    _add("SG.", R_KEYED, K_SENDGRID, A_DOTTED, 40, offset=1, pair=True)
    for prefix in ("AccountKey=", "SharedAccessKey=", "accesskey="):
        _add(prefix, R_KEYED, K_AZURE, A_BASE64, 40, 0, F_BODY, offset=len(prefix) - 4, fold=False)
    _add("sig=", R_KEYED, K_AZURE, A_QUERY, 40, 0, F_BODY | F_MIX)
    _add("inf_", R_KEYED, K_INFERNO, A_WORD, 40)
    for prefix, alphabet, shortest in (
        ("dop_v1_", A_HEX, 40), ("doo_v1_", A_HEX, 40), ("dor_v1_", A_HEX, 40), ("shpat_", A_HEX, 28), ("shpca_", A_HEX, 28),
        ("shppa_", A_HEX, 28), ("shpss_", A_HEX, 28), ("sq0atp-", A_URL64, 20), ("sq0csp-", A_URL64, 30), ("dapi", A_HEX, 32),
        ("ATATT3x", A_URL64, 40), ("ATCTT3x", A_URL64, 40), ("lin_api_", A_ALNUM, 32), ("ntn_", A_ALNUM, 40),
        ("figd_", A_URL64, 30), ("glsa_", A_WORD, 32), ("glc_", A_BASE64, 40), ("hvs.", A_URL64, 24), ("hvb.", A_URL64, 24),
        ("sbp_", A_HEX, 32), ("pscale_tkn_", A_URL64, 30), ("pscale_pw_", A_URL64, 30), ("rubygems_", A_HEX, 40),
        ("dckr_pat_", A_URL64, 20), ("dckr_oat_", A_URL64, 20), ("HRKU-", A_URL64, 30), ("NRAK-", A_ALNUM, 24),
        ("NRJS-", A_ALNUM, 16), ("gsk_", A_ALNUM, 40), ("xai-", A_ALNUM, 60), ("pplx-", A_ALNUM, 40), ("tvly-", A_URL64, 28),
        ("PMAK-", A_URL64, 40), ("sntrys_", A_BASE64, 40), ("sntryu_", A_HEX, 40), ("AGE-SECRET-KEY-1", A_UPPER, 50),
        ("dp.pt.", A_ALNUM, 40), ("pul-", A_HEX, 40), ("xkeysib-", A_URL64, 60), ("CCIPAT_", A_WORD, 40), ("bkua_", A_HEX, 36),
        ("CFPAT-", A_URL64, 40), ("EZAK", A_ALNUM, 50), ("EZTK", A_ALNUM, 50), ("FLWSECK", A_URL64, 30),
        ("shippo_live_", A_HEX, 36), ("nfp_", A_ALNUM, 36), ("rnd_", A_ALNUM, 28), ("lsv2_pt_", A_WORD, 36),
        ("lsv2_sk_", A_WORD, 36), ("nvapi-", A_URL64, 50), ("jina_", A_URL64, 50), ("tgp_v1_", A_URL64, 40),
        ("SK.", A_URL64, 60), ("key-", A_HEX, 32), ("patA", A_DOTTED, 60), ("EAAC", A_ALNUM, 100), ("PRIVATE-TOKEN-", A_URL64, 20),
        ("whsk_", A_ALNUM, 20), ("rzp_live_", A_ALNUM, 12), ("rzp_test_", A_ALNUM, 12), ("tfp_", A_URL64, 40),
        ("fio-u-", A_URL64, 50), ("secret_", A_ALNUM, 40), ("sl.", A_URL64, 100), ("vault:v1:", A_BASE64, 40),
        ("phc_", A_ALNUM, 36), ("phx_", A_ALNUM, 36), ("waka_", A_URL64, 32), ("ddp_", A_ALNUM, 32), ("sgp_", A_WORD, 40),
        ("cio_", A_ALNUM, 30), ("oy2", A_ALNUM, 43),
    ):
        if len(prefix) >= 4:
            _add(prefix, R_KEYED, K_SERVICE, alphabet, shortest, 0, F_MIX)
    _add("r8_", R_KEYED, K_SERVICE, A_ALNUM, 30, 0, F_MIX, offset=1, pair=True)
    _add("fw_", R_KEYED, K_SERVICE, A_ALNUM, 20, 0, F_MIX, offset=1, pair=True)
    _add("-----BEGIN ", R_PEM, K_PEM, offset=5)
    _add("basic ", R_BASIC, K_BASIC, fold=True, offset=1)
    _add("bearer ", R_BEARER, K_BEARER, fold=True)
    for word in ("password", "passwd", "passphrase", "passwort", "contrase", "pwd=", "pwd:", "pwd ", "pwd\"", "pwd'",
                 "kennwort", "senha", "wachtwoord", "parola", "mot de passe", "salasana", "adgangskode", "jelszo", "heslo",
                 "contrasena", "haslo", "losenord", "passord", "kodeord", "parool", "palavra-passe", "palavra passe", "kata sandi",
                 "identified by "):
        _add(word, R_WORD, K_GENERIC, flags=F_STRONG, fold=True)
    for word in ("pass=", "pass:", "pass =", "_pass", "passcode"):
        _add(word, R_WORD, K_GENERIC, flags=F_STRONG, fold=True, offset=1 if word != "passcode" else 0)
    for word in ("secret", "token", "credential", "clave"):
        _add(word, R_WORD, K_GENERIC, fold=True)
    for word in ("apikey", "api_key", "api-key", "api key"):
        _add(word, R_WORD, K_GENERIC, flags=F_STRONG, fold=True, offset=2)
    for word in ("access_key", "access-key", "accesskey", "access key", "auth_key", "authkey", "auth-key", "signing_key", "encryption_key", "master_key",
                 "private_key", "privatekey", "hmac_key", "subscription-key", "license_key", "storage_key", "account_key"):
        _add(word, R_WORD, K_GENERIC, fold=True, offset=word.find("key") - 1)


_build()
