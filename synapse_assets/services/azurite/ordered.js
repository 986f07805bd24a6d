// Preloaded into Azurite: lists blobs and folders in one order by name, and from a given name on, as
// Azure does.
//
// Azurite lists all folders of a page before all blobs. Hadoop's ABFS driver takes a folder's marker
// (the blob "a") and the folder ("a/") for one only in Azure's order, and otherwise lists it twice:
// Spark then fails to commit a partitioned write and reads every partition two times.
//
// Azurite 3.35 does not know the parameter startFrom (service version 2025-05-05), with which delta-rs
// asks for the log from a version on: given the older ones too, it takes the table for damaged.
"use strict";

const http = require("http");

const ENTRY = /<(Blob|BlobPrefix)><Name>([^<]*)<\/Name>.*?<\/\1>/gs;
const ENTITIES = { "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&amp;": "&" };

function order(listing, startFrom) {
  const begin = listing.indexOf("<Blobs>") + "<Blobs>".length;
  const end = listing.lastIndexOf("</Blobs>");
  const entries = [...listing.slice(begin, end).matchAll(ENTRY)].map(([text, , name]) => ({
    text,
    name: Buffer.from(name.replace(/&\w+;/g, (entity) => ENTITIES[entity] || entity)),
  }));
  entries.sort((a, b) => Buffer.compare(a.name, b.name));
  const length = entries.reduce((sum, { text }) => sum + text.length, 0);
  if (length !== end - begin) {
    throw new Error("Azurite lists blobs in a form that ordered.js does not know.");
  }
  const ordered = entries
    .filter(({ name }) => Buffer.compare(name, startFrom) >= 0)
    .map(({ text }) => text)
    .join("");
  return listing.slice(0, begin) + ordered + listing.slice(end);
}

const write = http.ServerResponse.prototype.write;
http.ServerResponse.prototype.write = function (chunk, ...parameters) {
  // The serializer writes a listing as one string.
  const isListing = typeof chunk === "string" && chunk.includes("</Blobs><NextMarker");
  if (!isListing) {
    return write.call(this, chunk, ...parameters);
  }
  const startFrom = new URL(this.req.url, "http://localhost").searchParams.get("startFrom") || "";
  return write.call(this, order(chunk, Buffer.from(startFrom)), ...parameters);
};
