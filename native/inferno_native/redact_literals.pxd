"""The table of literals that announce a secret."""

cdef enum Recogniser:
    R_KEYED = 0     # prefix, then a run of the body's alphabet
    R_WORD = 1      # a word such as "password", then what is assigned to it
    R_PEM = 2
    R_BASIC = 3
    R_BEARER = 4
    R_HOOK = 5      # a webhook address, covered from its scheme on

cdef enum Alphabet:
    A_ALNUM = 0
    A_URL64 = 1
    A_HEX = 2
    A_UPPER = 3     # capitals and digits
    A_BASE64 = 4
    A_DOTTED = 5    # base64url and dots
    A_WORD = 6      # letters, digits, underscore
    A_PATH = 7      # base64url and slashes
    A_QUERY = 8     # base64 and its percent escapes

cdef enum Flag:
    F_EXACT = 1     # no longer run is taken
    F_MIX = 2       # a digit must stand in the body
    F_BODY = 4      # the prefix may stay
    F_STRONG = 8    # words: the value is a secret by its name alone

cdef struct Literal:
    const char *text
    int size
    int recogniser
    int offset      # of the four bytes that the skip loop knows
    bint fold       # any case
    bint pair       # the skip loop knows two bytes of it, not four
    int alphabet
    int shortest    # of the body
    int longest     # 0: no limit
    int kind
    int flags

cdef Literal LITERALS[300]
cdef int NUM_LITERALS
