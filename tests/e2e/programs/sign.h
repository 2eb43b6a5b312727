/*
 * Signs enclaves with OpenSSL. Included by programs that load enclaves of their own.
 */
#include <openssl/bn.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { KEY_BYTES = 384 };

struct sigstruct {
	uint8_t header[16];
	uint32_t vendor, date;
	uint8_t header2[16];
	uint32_t swdefined;
	uint8_t reserved1[84];
	uint8_t modulus[KEY_BYTES];
	uint32_t exponent;
	uint8_t signature[KEY_BYTES];
	uint32_t miscselect, miscmask;
	uint8_t reserved2[4];
	uint8_t family[16];
	uint64_t attributes, xfrm, attributes_mask, xfrm_mask;
	uint8_t measurement[32];
	uint8_t reserved3[16];
	uint8_t extended_product[16];
	uint16_t product, version;
	uint8_t reserved4[12];
	uint8_t q1[KEY_BYTES], q2[KEY_BYTES];
} __attribute__((packed));

_Static_assert(sizeof(struct sigstruct) == 1808, "SIGSTRUCT is 1808 bytes");

static void __attribute__((format(printf, 2, 3), noreturn)) fail(int status, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
	fflush(stdout);
	_exit(status);
}

static void little_endian(const BIGNUM *number, uint8_t *bytes)
{
	if (BN_bn2lebinpad(number, bytes, KEY_BYTES) != KEY_BYTES)
		fail(2, "a number of the signature is too long");
}

/* Completes a SIGSTRUCT whose attributes, measurement and numbers are there, with everything that EINIT checks. */
static void sign(const char *key_path, struct sigstruct *signature)
{
	static const uint8_t header[16] = { 6, 0, 0, 0, 0xe1, 0, 0, 0, 0, 0, 1 };
	static const uint8_t header2[16] = { 1, 1, 0, 0, 0x60, 0, 0, 0, 0x60, 0, 0, 0, 1 };
	uint8_t message[256], bytes[KEY_BYTES];
	size_t length = sizeof(bytes);
	FILE *file = fopen(key_path, "r");
	EVP_PKEY *key = file ? PEM_read_PrivateKey(file, NULL, NULL, NULL) : NULL;
	EVP_MD_CTX *hash = EVP_MD_CTX_new();
	BIGNUM *modulus = NULL;

	if (!key || !EVP_PKEY_get_bn_param(key, "n", &modulus))
		fail(2, "no key in %s", key_path);
	memcpy(signature->header, header, sizeof(header));
	memcpy(signature->header2, header2, sizeof(header2));
	signature->exponent = 3;
	memcpy(message, signature, 128);
	memcpy(message + 128, &signature->miscselect, 128);
	if (EVP_DigestSignInit(hash, NULL, EVP_sha256(), NULL, key) <= 0 ||
	    EVP_DigestSign(hash, bytes, &length, message, sizeof(message)) <= 0 || length != KEY_BYTES)
		fail(2, "cannot sign");

	BN_CTX *scratch = BN_CTX_new();
	BIGNUM *s = BN_bin2bn(bytes, KEY_BYTES, NULL), *product = BN_new(), *q1 = BN_new(), *q2 = BN_new(),
	       *rest = BN_new();

	BN_sqr(product, s, scratch);
	BN_div(q1, rest, product, modulus, scratch);
	BN_mul(product, s, rest, scratch);
	BN_div(q2, NULL, product, modulus, scratch);
	little_endian(modulus, signature->modulus);
	little_endian(s, signature->signature);
	little_endian(q1, signature->q1);
	little_endian(q2, signature->q2);
}
