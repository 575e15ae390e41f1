// Validates one AsyncAPI document offline: `NODE_PATH=<node_modules> node validate.cjs FILE`.
// Exit code 0 means no error; every finding goes to standard error, one per line.
"use strict";

const { Parser, fromFile } = require("@asyncapi/parser");

const SEVERITY = ["error", "warning", "information", "hint"];

async function main(path) {
  // A reference to another host would make the check depend on the network. It is answered with
  // an empty schema, as after a refusal the parser would try its own reader, and counts as error.
  const remote = [];
  const offline = (schema) => ({
    schema,
    order: 1,
    read: async (uri) => { remote.push(uri.toString()); return "{}"; },
  });
  const parser = new Parser({
    __unstable: { resolver: { resolvers: [offline("http"), offline("https")] } },
  });
  const { document, diagnostics } = await fromFile(parser, path).parse();
  for (const { severity, path: where, message } of diagnostics) {
    console.error(`${SEVERITY[severity]} ${where.join("/")}: ${message}`);
  }
  for (const uri of remote) {
    console.error(`error ${uri}: not a local file`);
  }
  const errors = diagnostics.filter(({ severity }) => severity === 0).length + remote.length;
  return document && errors === 0 ? 0 : 1;
}

if (process.argv.length !== 3) {
  console.error("usage: node validate.cjs FILE");
  process.exitCode = 64;
} else {
  main(process.argv[2]).then(
    (code) => { process.exitCode = code; },
    (error) => { console.error(error.message); process.exitCode = 70; },
  );
}
